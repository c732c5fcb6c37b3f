"""How much of a model is trained: one settings class for each method (read by `--help`, so no torch here).

`peft.method` chooses the class; its other keys are that class's fields. A pattern names modules of a model in the way
of a shell (`stack.blocks.*.mlp.up`), or by the last part alone (`up`).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from trivium.config import Settings, chosen_by, tag_of

Method = Literal[
    "none", "bias", "norms", "last_layers", "embeddings", "pattern", "lora", "rslora", "dora", "ia3", "houlsby",
    "pfeiffer", "parallel", "prompt", "prefix", "p_tuning",
]  # fmt: skip
Activation = Literal["relu", "gelu", "silu", "tanh"]
PromptStart = Literal["text", "vocabulary", "random"]
WhichStacks = Literal["all", "encoder", "decoder"]
Patterns = tuple[str, ...]


class _Method(Settings):
    """What all methods have in common."""

    also_train: Patterns = ()
    """Patterns of modules that are trained in full beside the method. A head that is new to the model always is."""


class NoPeftSettings(_Method):
    """Train everything."""

    method: Literal["none"] = "none"
    """How much is trained. Everything: `none`. A choice of the model's own weights: `bias` (Ben Zaken et al., 2022),
    `norms`, `last_layers`, `embeddings`, `pattern`. A product of two thin matrices beside each linear layer: `lora` (Hu
    et al., 2022), `rslora` (Kalajdzievski, 2023), `dora` (Liu et al., 2024). Small networks between the layers:
    `houlsby` (Houlsby et al., 2019), `pfeiffer` (Pfeiffer et al., 2021), `parallel` (He et al., 2022); factors: `ia3`
    (Liu et al., 2022). Learned positions before the text: `prompt` (Lester et al., 2021), `p_tuning` (Liu et al.,
    2021), and in every layer: `prefix` (Li & Liang, 2021)."""


class BiasSettings(_Method):
    """Train every bias, and nothing else."""

    method: Literal["bias"] = "bias"
    """All biases, those of norms and of the head among them."""


class NormsSettings(_Method):
    """Train the norms."""

    method: Literal["norms"] = "norms"
    """Every weight and bias of the norms."""


class LastLayersSettings(_Method):
    """Train the last blocks and the norm after them."""

    method: Literal["last_layers"] = "last_layers"
    """The blocks nearest to the head; of an encoder-decoder, those of its decoder."""
    layers: int = Field(default=2, ge=1)
    """How many."""


class EmbeddingsSettings(_Method):
    """Train the table of tokens (where the head is tied to it, the head with it)."""

    method: Literal["embeddings"] = "embeddings"
    """The table of tokens; tables of positions stay."""


class PatternSettings(_Method):
    """Train the parameters whose names match."""

    method: Literal["pattern"] = "pattern"
    """Whatever `patterns` name."""
    patterns: Annotated[Patterns, Field(min_length=1)]
    """Patterns of parameters or modules, such as `stack.blocks.*.attention.*`; each must match something."""


class _LowRank(_Method):
    """A product of two thin matrices beside a frozen one."""

    rank: int = Field(default=8, ge=1)
    """Width of the product's middle, r."""
    alpha: float | None = Field(default=None, gt=0)
    """The product is scaled by alpha / r (rslora: alpha / sqrt(r)); null: twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the product's inputs that is dropped in training."""
    targets: Literal["auto"] | Annotated[Patterns, Field(min_length=1)] = "auto"
    """Patterns of the linear layers it is put beside, such as [query, value]; `auto`: all those of the blocks."""
    ranks: dict[str, int] = Field(default_factory=dict)
    """Other ranks for some of them, by pattern: `{"stack.blocks.0.*": 16}`; the last that matches counts."""
    alphas: dict[str, float] = Field(default_factory=dict)
    """Other values of alpha, likewise."""
    learning_rate_ratio: float = Field(default=1.0, gt=0)
    """LoRA+ (Hayou et al., 2024): the matrix that begins at zero learns so many times faster than the other; 16 is
    usual there."""


class LoraSettings(_LowRank):
    """W + alpha / r B A."""

    method: Literal["lora"] = "lora"
    """Low-rank adaptation (Hu et al., 2022)."""


class RsLoraSettings(_LowRank):
    """W + alpha / sqrt(r) B A."""

    method: Literal["rslora"] = "rslora"
    """LoRA with a scale that keeps large ranks useful (Kalajdzievski, 2023)."""


class DoraSettings(_LowRank):
    """m (W + alpha / r B A) / |W + alpha / r B A|, each output's row by itself."""

    method: Literal["dora"] = "dora"
    """LoRA for the direction of each output, a learned number for its length (Liu et al., 2024)."""


class IA3Settings(_Method):
    """A learned factor for each element of keys, values and the inner layer of the MLP."""

    method: Literal["ia3"] = "ia3"
    """Factors, all 1 at first (Liu et al., 2022)."""
    scaled_outputs: Annotated[Patterns, Field(min_length=1)] = ("key", "value")
    """Patterns of linear layers whose outputs are multiplied."""
    scaled_inputs: Patterns = ("down",)
    """Patterns of linear layers whose inputs are multiplied."""


class _Adapters(_Method):
    """A narrow network of two layers: up(activation(down(x)))."""

    bottleneck: int = Field(default=64, ge=1)
    """Its inner width, m."""
    activation: Activation = "gelu"
    """What stands between its two layers."""
    scale: float = Field(default=1.0, gt=0)
    """What its output is multiplied by; He et al. (2022) take 4 for `parallel`."""


class HoulsbySettings(_Adapters):
    """After attention and after the MLP of each block."""

    method: Literal["houlsby"] = "houlsby"
    """Two adapters a block, each added to what the sublayer writes (Houlsby et al., 2019)."""


class PfeifferSettings(_Adapters):
    """After the MLP of each block."""

    method: Literal["pfeiffer"] = "pfeiffer"
    """One adapter a block, after the MLP (Pfeiffer et al., 2021)."""


class ParallelSettings(_Adapters):
    """Beside the MLP of each block."""

    method: Literal["parallel"] = "parallel"
    """One adapter a block, which reads what the MLP reads (He et al., 2022)."""


class _Virtual(_Method):
    """Learned positions that are no text."""

    virtual_tokens: int = Field(default=20, ge=1)
    """How many positions, P."""


class PromptSettings(_Virtual):
    """P learned vectors before the embedded text."""

    method: Literal["prompt"] = "prompt"
    """Prompt tuning (Lester et al., 2021); of an encoder-decoder, before the source."""
    start: PromptStart = "vocabulary"
    """What the vectors are at first: the embeddings of `text`, those of tokens drawn from the vocabulary, or random."""
    text: str = ""
    """The text they begin as, repeated or cut to P tokens; with `start: text`."""


class PrefixTuningSettings(_Virtual):
    """P learned keys and values in every attention."""

    method: Literal["prefix"] = "prefix"
    """Prefix tuning (Li & Liang, 2021)."""
    stacks: WhichStacks = "all"
    """Of an encoder-decoder: which of its stacks get a prefix of their own. `all`: the encoder, and the decoder's
    attention to itself and to the source; `decoder`: its attention to itself alone, as in `peft`."""
    projection_width: int = Field(default=0, ge=0)
    """Learn the prefix through a network of this inner width, which is left out of what is saved; 0: by itself."""


class PTuningSettings(_Virtual):
    """P vectors before the text, made by a small network."""

    method: Literal["p_tuning"] = "p_tuning"
    """P-tuning (Liu et al., 2021) with an MLP; what it makes is saved, as a prompt."""
    width: int = Field(default=0, ge=0)
    """The network's inner width; 0: that of the model."""


LowRankSettings = LoraSettings | RsLoraSettings | DoraSettings
AdapterSettings = HoulsbySettings | PfeifferSettings | ParallelSettings
VirtualSettings = PromptSettings | PrefixTuningSettings | PTuningSettings
SelectiveSettings = BiasSettings | NormsSettings | LastLayersSettings | EmbeddingsSettings | PatternSettings

PeftSettings = Annotated[
    Annotated[NoPeftSettings, Tag("none")]
    | Annotated[BiasSettings, Tag("bias")]
    | Annotated[NormsSettings, Tag("norms")]
    | Annotated[LastLayersSettings, Tag("last_layers")]
    | Annotated[EmbeddingsSettings, Tag("embeddings")]
    | Annotated[PatternSettings, Tag("pattern")]
    | Annotated[LoraSettings, Tag("lora")]
    | Annotated[RsLoraSettings, Tag("rslora")]
    | Annotated[DoraSettings, Tag("dora")]
    | Annotated[IA3Settings, Tag("ia3")]
    | Annotated[HoulsbySettings, Tag("houlsby")]
    | Annotated[PfeifferSettings, Tag("pfeiffer")]
    | Annotated[ParallelSettings, Tag("parallel")]
    | Annotated[PromptSettings, Tag("prompt")]
    | Annotated[PrefixTuningSettings, Tag("prefix")]
    | Annotated[PTuningSettings, Tag("p_tuning")],
    Discriminator(tag_of("method")),
    BeforeValidator(chosen_by("method", get_args(Method), "lora")),
]

SELECTIVE: tuple[Method, ...] = ("bias", "norms", "last_layers", "embeddings", "pattern")
LOW_RANK: tuple[Method, ...] = ("lora", "rslora", "dora")
ADAPTERS: tuple[Method, ...] = ("houlsby", "pfeiffer", "parallel")
VIRTUAL: tuple[Method, ...] = ("prompt", "prefix", "p_tuning")
METHODS: tuple[Method, ...] = ("none", *SELECTIVE, *LOW_RANK, "ia3", *ADAPTERS, *VIRTUAL)
ADDED: tuple[Method, ...] = (*LOW_RANK, "ia3", *ADAPTERS, *VIRTUAL)
"""Methods that add weights to the model, which are kept as an adapter beside it."""
MERGEABLE: tuple[Method, ...] = (*LOW_RANK, "ia3")
"""Those whose weights can be worked into the model's own."""
