"""What a model learns from its data: one settings class for each objective (read by `--help`, so no torch here).

`objective.name` chooses the class; its other keys are that class's fields. Which kind of model can learn which
objective is one table (`OBJECTIVES_OF`), asked before anything is loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from trivium.config import Settings, chosen_by, tag_of
from trivium.errors import UserError
from trivium.models.config import Kind

ObjectiveName = Literal["causal", "prefix", "masked", "spans", "denoise", "mixture", "pairs"]
Mode = Literal["R", "S", "X"]
Score = Literal["none", "bleu", "rouge"]


class CausalSettings(Settings):
    """Predict the next token (decoder)."""

    name: Literal["causal"] = "causal"
    """What is learned: the next token (`causal`, the default of a decoder), the rest of a text after a part that is
    seen both ways (`prefix`), hidden tokens (`masked`, of an encoder), spans cut out of a text (`spans`, of an
    encoder-decoder), a text from a spoilt one (`denoise`), all sorts of cuts (`mixture`), or a target from its source
    (`pairs`)."""


class PrefixSettings(Settings):
    """Go on with a text whose beginning, of random length, is seen both ways (decoder, encoder-decoder)."""

    name: Literal["prefix"] = "prefix"
    """Prefix language modelling (Liu et al., 2018; Raffel et al., 2020)."""


class MaskedSettings(Settings):
    """Restore hidden tokens from both sides (encoder)."""

    name: Literal["masked"] = "masked"
    """Masked language modelling (Devlin et al., 2019), drawn anew in each epoch (Liu et al., 2019)."""
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of a text that are to be restored."""
    hidden_share: float = Field(default=0.8, ge=0, le=1)
    """Of these, the share that the mask token stands for."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Of these, the share that a random token stands for; what is left stays as it is."""
    whole_words: bool = False
    """Choose whole words instead of single tokens: harder, and better for languages of long words."""


class SpansSettings(Settings):
    """Restore spans that are cut out of a text (encoder-decoder)."""

    name: Literal["spans"] = "spans"
    """Span corruption (Raffel et al., 2020): a sentinel stands for each span, the target is the spans."""
    noise_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of a text that are cut out."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span in tokens."""


class DenoiseSettings(Settings):
    """Restore a whole text from a spoilt one (encoder-decoder)."""

    name: Literal["denoise"] = "denoise"
    """BART's noise (Lewis et al., 2020); the target is the whole text. The defaults are those of the published BART."""
    mask_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens that the mask token stands for, one for one."""
    delete_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens that are left out."""
    infill_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of the tokens in spans for each of which a single mask token stands."""
    poisson_mean: float = Field(default=3.0, gt=0)
    """Mean length of these spans, drawn from a Poisson distribution; one of length 0 inserts a mask."""
    permute_sentences: bool = True
    """Put the sentences of a text in random order."""
    rotate: bool = False
    """Let the text begin at a random token, with what was before it at its end."""


class Denoiser(Settings):
    """One way of cutting in a mixture."""

    mode: Mode
    """`R`: short spans, `X`: long ones or many, `S`: the end of the text (a single span)."""
    noise_share: float = Field(gt=0, lt=1)
    """Share of the tokens that are cut out; with `S` the mean of a share drawn evenly from 0 to twice this (at most
    all)."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span in tokens; `S` does not read it."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How often texts are cut in this way, relative to the others."""


UL2_DENOISERS = (
    Denoiser(mode="R", noise_share=0.15, mean_span=3),
    Denoiser(mode="R", noise_share=0.15, mean_span=8),
    Denoiser(mode="S", noise_share=0.25),
    Denoiser(mode="X", noise_share=0.5, mean_span=3),
    Denoiser(mode="X", noise_share=0.5, mean_span=8),
    Denoiser(mode="X", noise_share=0.15, mean_span=64),
    Denoiser(mode="X", noise_share=0.5, mean_span=64),
)


class MixtureSettings(Settings):
    """Restore what one of several ways of cutting has cut out (encoder-decoder)."""

    name: Literal["mixture"] = "mixture"
    """A mixture of denoisers (Tay et al., 2022: UL2)."""
    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1)] = UL2_DENOISERS
    """The ways of cutting; the default is the seven of UL2, drawn equally often."""
    mode_tokens: bool = False
    """Begin each source with a token that tells its mode: the last three sentinels stand for R, S and X."""


class PairsSettings(Settings):
    """Write a target when given its source (encoder-decoder)."""

    name: Literal["pairs"] = "pairs"
    """Supervised sequence-to-sequence learning: rows of {source, target} or {prompt, response}, or parallel texts."""
    languages: tuple[str, str] | None = None
    """Endings of parallel text files, such as [en, de]: `data.train=train` then means the lines of train.en as sources
    and those of train.de as targets. Null: `data.train` names files of rows."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over all tokens (Szegedy et al., 2016; 0.1 in the Transformer of 2017)."""
    generate_and_score: Score = "none"
    """At each evaluation also write the targets of held-out sources, and score them against the true ones."""
    validation_pairs_to_generate: int = Field(default=200, ge=1)
    """How many held-out pairs that is, spread evenly; at the end of the run beam search is scored on them too."""
    num_beams: int = Field(default=4, ge=2)
    """Beams of the search at the end of the run."""
    max_target_tokens: int = Field(default=128, ge=1)
    """Most tokens written for one source."""


OBJECTIVES: tuple[ObjectiveName, ...] = ("causal", "prefix", "masked", "spans", "denoise", "mixture", "pairs")

ObjectiveSettings = Annotated[
    Annotated[CausalSettings, Tag("causal")]
    | Annotated[PrefixSettings, Tag("prefix")]
    | Annotated[MaskedSettings, Tag("masked")]
    | Annotated[SpansSettings, Tag("spans")]
    | Annotated[DenoiseSettings, Tag("denoise")]
    | Annotated[MixtureSettings, Tag("mixture")]
    | Annotated[PairsSettings, Tag("pairs")],
    Discriminator(tag_of("name")),
    BeforeValidator(chosen_by("name", OBJECTIVES)),
]


# What each kind of model can learn; the first is what it learns when nothing else is said.
OBJECTIVES_OF: dict[Kind, tuple[ObjectiveName, ...]] = {
    "decoder": ("causal", "prefix"),
    "encoder": ("masked",),
    "encoder-decoder": ("spans", "denoise", "mixture", "prefix", "pairs"),
}

_NEEDS_SOURCE = "it writes a target while it reads a source, and {kind} has one stack for one text"
_WHY_NOT: dict[tuple[ObjectiveName, Kind], str] = {
    ("causal", "encoder"): "an encoder sees the token it is to predict, since it sees both sides",
    (
        "causal",
        "encoder-decoder",
    ): "it needs a source to read; `prefix` is next-token learning with one",
    ("prefix", "encoder"): "an encoder sees the token it is to predict, since it sees both sides",
    ("masked", "decoder"): "a decoder sees the past only, so it cannot restore a hidden token from both sides",
    ("masked", "encoder-decoder"): "its decoder writes a text of its own; `spans` and `denoise` restore what is hidden",
    ("pairs", "decoder"): f"{_NEEDS_SOURCE.format(kind='a decoder')}; answers to prompts are a matter of finetuning",
}


def refuse_objective(objective: ObjectiveName, kind: Kind) -> None:
    """UserError with the reason where a model of this kind cannot learn this objective."""
    allowed = OBJECTIVES_OF[kind]
    if objective not in allowed:
        reason = _WHY_NOT.get(
            (objective, kind), _NEEDS_SOURCE.format(kind="an encoder" if kind == "encoder" else f"a {kind}")
        )
        homes = " or ".join(name for name, objectives in OBJECTIVES_OF.items() if objective in objectives)
        raise UserError(
            f"objective.name={objective} is not for model.kind={kind}: {reason}; choose "
            f"objective.name={', '.join(allowed)}, or model.kind={homes}"
        )
