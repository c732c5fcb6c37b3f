"""The shape of a model: every choice typed, checked once, and readable without torch.

Letters used through `models/`: B rows, T positions, S keys attended to, D width, H query heads, K key/value heads,
N head width, F MLP width, V vocabulary, L layers.

Widths that are left at 0 are filled in when the config is made, so that a finished config holds no zero. The invariant
its test checks: a config is either valid and fully resolved or refused, with every mistake named in one error.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trivium.config import Settings

Kind = Literal["decoder"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post"]
Positions = Literal["rotary", "learned", "sinusoidal", "none"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Mlp = Literal["gated", "plain"]
Bias = Literal["none", "qkv", "attention", "mlp", "all"]

# MLP widths chosen here are rounded up to this multiple, which suits the vector units of CPUs and GPUs alike.
MLP_WIDTH_MULTIPLE = 32
# No count of any model comes near this; beyond it, products of two counts would no longer fit 64 bits.
LARGEST = 1 << 30


class ModelConfig(Settings):
    """The shape of one model; two models of equal config have equal parameter names and shapes."""

    vocab_size: int = Field(ge=1, le=LARGEST)
    """How many token ids the model knows (V), special tokens included; at least the tokenizer's size."""
    width: int = Field(ge=1, le=LARGEST)
    """Width of the residual stream (D)."""
    layers: int = Field(ge=1, le=LARGEST)
    """How many blocks are stacked (L)."""
    heads: int = Field(ge=1, le=LARGEST)
    """How many query heads each attention has (H)."""
    kind: Kind = "decoder"
    """What the stack may see: a decoder sees the past only."""
    kv_heads: int = Field(default=0, ge=0, le=LARGEST)
    """How many key/value heads (K), shared by groups of query heads (Ainslie et al., 2023); 0: as many as `heads`."""
    head_width: int = Field(default=0, ge=0, le=LARGEST)
    """Width of one head (N); 0: `width` / `heads`."""
    mlp_width: int = Field(default=0, ge=0, le=LARGEST)
    """Inner width of the MLP (F); 0: 4 x `width` when plain, 8/3 x `width` when gated, so that both cost the same."""
    norm: Norm = "rmsnorm"
    """RMSNorm (Zhang & Sennrich, 2019) or LayerNorm with bias (Ba et al., 2016)."""
    norm_placement: NormPlacement = "pre"
    """Normalise what enters a sublayer (`pre`, with one more norm at the end) or the sum that leaves it (`post`)."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance before its root, against division by zero."""
    positions: Positions = "rotary"
    """How order is told: rotated queries and keys (Su et al., 2021), a learned table, fixed sines, or not at all."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary wavelengths; larger bases suit longer contexts."""
    max_positions: int = Field(default=2048, ge=1, le=LARGEST)
    """Longest sequence the model is made for: the size of a learned table, and a promise to whoever uses the model."""
    activation: Activation = "silu"
    """Nonlinearity of the MLP; `gelu_tanh` is GPT-2's approximation of `gelu`."""
    mlp: Mlp = "gated"
    """`gated`: down(activation(gate(x)) * up(x)) (Shazeer, 2020); `plain`: down(activation(up(x)))."""
    bias: Bias = "none"
    """Which linear layers have a bias: none, query/key/value, all four of attention, those of the MLP, or all."""
    tied_embeddings: bool = True
    """Whether the output projection is the embedding table itself; saves V x D parameters."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the embeddings and of each sublayer's output that is dropped in training."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights dropped in training; on CPU anything above 0 gives up the fused attention."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; projections into the residual stream are scaled by 1/sqrt(2 L)."""

    @model_validator(mode="before")
    @classmethod
    def _absent_means_default(cls, values: Any) -> Any:
        """A width given as null is a width left to us."""
        if not isinstance(values, dict):
            return values
        derived = ("kv_heads", "head_width", "mlp_width")
        return {key: value for key, value in values.items() if not (key in derived and value is None)}

    @model_validator(mode="after")
    def _resolve_and_check(self) -> ModelConfig:
        mistakes: list[str] = []
        if self.head_width == 0:
            if self.width % self.heads:
                mistakes.append(
                    f"heads={self.heads} does not divide width={self.width}: choose a divisor, or set head_width"
                )
            self._resolve("head_width", max(1, self.width // self.heads))
        if self.kv_heads == 0:
            self._resolve("kv_heads", self.heads)
        if self.mlp_width == 0:
            self._resolve("mlp_width", default_mlp_width(self.width, self.mlp))
        if self.heads % self.kv_heads:
            mistakes.append(f"kv_heads={self.kv_heads} does not divide heads={self.heads}: choose a divisor of it")
        if self.positions == "rotary" and self.head_width % 2 and not mistakes:
            mistakes.append(
                f"rotary positions turn pairs, so head_width={self.head_width} must be even: "
                "change width or heads, or choose other positions"
            )
        if self.positions == "sinusoidal" and self.width % 2:
            mistakes.append(f"sinusoidal positions come in pairs, so width={self.width} must be even")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def _resolve(self, name: str, value: int) -> None:
        """Fill in a width that was left at 0 without marking it as chosen by the user."""
        self.__dict__[name] = value

    def changed(self, **changes: Any) -> ModelConfig:
        """A new, checked config with some fields replaced; widths that were derived are derived anew."""
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        return ModelConfig(**{**stated, **changes})

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.bias in ("qkv", "attention", "all")

    @property
    def attention_output_bias(self) -> bool:
        """Whether the projection out of attention has a bias."""
        return self.bias in ("attention", "all")

    @property
    def mlp_bias(self) -> bool:
        """Whether the projections of the MLP have a bias."""
        return self.bias in ("mlp", "all")


def default_mlp_width(width: int, mlp: Mlp) -> int:
    """F for a width D: 4 D when plain; 8/3 D when gated, so that three matrices cost what two do."""
    if mlp == "plain":
        return 4 * width
    return -(-8 * width // (3 * MLP_WIDTH_MULTIPLE)) * MLP_WIDTH_MULTIPLE
