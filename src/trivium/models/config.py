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
from trivium.models.config_checks import LARGEST, mistakes_of
from trivium.models.rope_scaling import RopeScaling

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Norm = Literal["rmsnorm", "rmsnorm_around_one", "layernorm", "layernorm_without_bias"]
NormPlacement = Literal["pre", "post", "sandwich"]
Residual = Literal["sequential", "parallel"]
Positions = Literal["rotary", "learned", "sinusoidal", "relative", "alibi", "none"]
QKNorm = Literal["none", "head"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Mlp = Literal["gated", "plain"]
Bias = Literal["none", "qkv", "attention", "mlp", "all"]
Head = Literal["lm", "classification", "token_classification", "span", "scalar", "none"]
HeadHidden = Literal["none", "tanh", "relu", "activation", "activation_norm"]
Pooling = Literal["first", "last", "mean"]

# MLP widths chosen here are rounded up to this multiple, which suits the vector units of CPUs and GPUs alike.
MLP_WIDTH_MULTIPLE = 32


class ModelConfig(Settings):
    """The shape of one model; two models of equal config have equal parameter names and shapes."""

    vocab_size: int = Field(ge=1, le=LARGEST)
    """How many token ids the model knows (V), special tokens included; at least the tokenizer's size."""
    width: int = Field(ge=1, le=LARGEST)
    """Width of the residual stream (D)."""
    layers: int = Field(ge=1, le=LARGEST)
    """How many blocks are stacked (L); of an encoder-decoder, those of the encoder."""
    heads: int = Field(ge=1, le=LARGEST)
    """How many query heads each attention has (H)."""
    kind: Kind = "decoder"
    """What a position may see: the past (decoder), everything (encoder), or, with two stacks, the whole source and the
    past of the target (encoder-decoder)."""
    decoder_layers: int = Field(default=0, ge=0, le=LARGEST)
    """Blocks of an encoder-decoder's decoder; 0: as many as `layers`. Other kinds have none and keep 0."""
    kv_heads: int = Field(default=0, ge=0, le=LARGEST)
    """How many key/value heads (K), shared by groups of query heads (Ainslie et al., 2023); 0: as many as `heads`."""
    head_width: int = Field(default=0, ge=0, le=LARGEST)
    """Width of one head (N); 0: `width` / `heads`."""
    mlp_width: int = Field(default=0, ge=0, le=LARGEST)
    """Inner width of the MLP (F); 0: 4 x `width` when plain, 8/3 x `width` when gated, so that both cost the same."""
    norm: Norm = "rmsnorm"
    """RMSNorm (Zhang & Sennrich, 2019), the same with weights stored as their distance from 1 (Gemma), LayerNorm with
    bias (Ba et al., 2016), or LayerNorm without."""
    norm_placement: NormPlacement = "pre"
    """Normalise what enters a sublayer (`pre`, with one more norm at the end), the sum that leaves it (`post`), or what
    enters and what leaves it before it is added (`sandwich`)."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance before its root, against division by zero."""
    norm_first_attention: bool = True
    """Whether the very first attention has a norm before it (pre-norm only); ModernBERT's embeddings are normed
    already."""
    qk_norm: QKNorm = "none"
    """Normalise queries and keys within each `head`, before they are rotated, which keeps scores bounded."""
    residual: Residual = "sequential"
    """The MLP reads what attention has written (`sequential`), or both read the same input (`parallel`; GPT-NeoX)."""
    positions: Positions = "rotary"
    """How order is told: rotated queries and keys (Su et al., 2021), a learned table, fixed sines, a learned bias by
    distance (`relative`; Raffel et al., 2020), a fixed one (`alibi`; Press et al., 2022), or not at all."""
    max_positions: int = Field(default=2048, ge=1, le=LARGEST)
    """Longest sequence the model is made for: the size of a learned table, and a promise to whoever uses the model."""
    position_offset: int = Field(default=0, ge=0, le=1024)
    """Rows of a learned table that come before position 0 and are never read (2 in RoBERTa, OPT and BART)."""
    rope_theta: float = Field(default=10_000.0, gt=1, le=1e12)
    """Base of the rotary wavelengths; larger bases suit longer contexts."""
    rope_share: float = Field(default=1.0, gt=0, le=1)
    """Share of each head that is rotated, from its front; the rest carries no position (0.25 in Pythia)."""
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched beyond the length they were learned for; null: not at all."""
    relative_buckets: int = Field(default=32, ge=2, le=LARGEST)
    """How many distances a relative bias tells apart."""
    relative_max_distance: int = Field(default=128, ge=2, le=LARGEST)
    """Distances from here on share a bucket of the relative bias."""
    sliding_window: int = Field(default=0, ge=0, le=LARGEST)
    """How many positions a windowed layer sees back from (and in an encoder, also ahead of) each one, itself included;
    0: no layer is windowed."""
    full_attention_layers: tuple[int, ...] = ()
    """Layers (from 0) that see everything although there is a sliding window."""
    local_rope_theta: float = Field(default=0.0, ge=0, le=1e12)
    """`rope_theta` of the windowed layers, which are never scaled then; 0: the same as in the others."""
    attention_scale: float = Field(default=0.0, ge=0, le=1e6)
    """What scores are multiplied by before the softmax; 0: 1 / sqrt(`head_width`)."""
    attention_softcap: float = Field(default=0.0, ge=0, le=1e9)
    """Scores s become c tanh(s / c), which bounds them by this c (Gemma 2); 0: unbounded."""
    activation: Activation = "silu"
    """Nonlinearity of the MLP; `gelu_tanh` is GPT-2's approximation of `gelu`."""
    mlp: Mlp = "gated"
    """`gated`: down(activation(gate(x)) * up(x)) (Shazeer, 2020); `plain`: down(activation(up(x)))."""
    bias: Bias = "none"
    """Which linear layers have a bias: none, query/key/value, all four of attention, those of the MLP, or all."""
    embedding_norm: bool = False
    """Whether the embeddings are normalised before the first block."""
    embedding_scale: float = Field(default=1.0, ge=0, le=1e6)
    """What token embeddings are multiplied by; 0: sqrt(D), as in the Transformer of 2017 and in Gemma."""
    segment_types: int = Field(default=0, ge=0, le=1024)
    """How many kinds of segment the input tells apart by an embedding (2 in BERT: first and second text); 0: none."""
    tied_embeddings: bool = True
    """Whether the output projection is the embedding table itself; saves V x D parameters."""
    head: Head = "lm"
    """What stands on the last hidden states: scores of every token (`lm`; of the masked one, in an encoder), scores of
    `labels` for a text or for each token, the two ends of an answer, one number for a text, or nothing."""
    head_hidden: HeadHidden = "none"
    """A layer of width D between hidden states and head: dense and the function named (`activation`: that of the
    MLP; `activation_norm`: and a norm)."""
    head_hidden_bias: bool = True
    """Whether that layer has a bias."""
    head_bias: bool = False
    """Whether the head's last projection has a bias."""
    pooling: Pooling = "first"
    """Which hidden state stands for a text (`classification`, `scalar`): that of its first token, of its last, or the
    mean."""
    labels: tuple[str, ...] = ()
    """Names of the classes of a `classification` or `token_classification` head; a single one is a regression."""
    logit_scale: float = Field(default=1.0, ge=0, le=1e6)
    """What hidden states are multiplied by before an `lm` head; 0: 1 / sqrt(D), as in T5 with its large embeddings."""
    logit_softcap: float = Field(default=0.0, ge=0, le=1e9)
    """Logits z become c tanh(z / c) with this c (Gemma 2); 0: as they are."""
    decoder_start_id: int = Field(default=0, ge=0, le=LARGEST)
    """The id an encoder-decoder's target begins with, which is given and not predicted."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the embeddings, of each sublayer's output and of what enters a class head's last projection that is
    dropped in training; T5's further dropouts, inside the MLP and after the last norm, there are none of."""
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
        derived = ("kv_heads", "head_width", "mlp_width", "decoder_layers")
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
        if self.decoder_layers == 0 and self.kind == "encoder-decoder":
            self._resolve("decoder_layers", self.layers)
        if self.embedding_scale == 0:
            self._resolve("embedding_scale", self.width**0.5)
        if self.logit_scale == 0:
            self._resolve("logit_scale", self.width**-0.5)
        mistakes += mistakes_of(self)
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def _resolve(self, name: str, value: float) -> None:
        """Fill in what was left at 0 without marking it as chosen by the user."""
        self.__dict__[name] = value
        if name not in ("embedding_scale", "logit_scale"):  # whose default is another
            self.__pydantic_fields_set__.discard(name)

    def changed(self, **changes: Any) -> ModelConfig:
        """A new, checked config with some fields replaced; widths that were derived are derived anew."""
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        for name, power in (("embedding_scale", 0.5), ("logit_scale", -0.5)):
            if stated.get(name) == self.width**power:
                stated[name] = 0  # follows the width
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

    @property
    def rope_width(self) -> int:
        """How many elements of each head are rotated."""
        return int(self.head_width * self.rope_share)

    @property
    def head_outputs(self) -> int:
        """How many numbers the head gives for a text or a position."""
        counts = {"lm": self.vocab_size, "span": 2, "scalar": 1, "none": self.width}
        return counts.get(self.head, len(self.labels))

    def is_windowed(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) sees a sliding window only."""
        return self.sliding_window > 0 and layer not in self.full_attention_layers


def default_mlp_width(width: int, mlp: Mlp) -> int:
    """F for a width D: 4 D when plain; 8/3 D when gated, so that three matrices cost what two do."""
    if mlp == "plain":
        return 4 * width
    return -(-8 * width // (3 * MLP_WIDTH_MULTIPLE)) * MLP_WIDTH_MULTIPLE
