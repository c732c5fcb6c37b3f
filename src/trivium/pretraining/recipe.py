"""The recipe of a pretraining run: one file that names everything the run depends on.

A recipe picks the parts and repeats none of their settings: each section is the settings class of the part it
configures. The resolved recipe is saved in the run directory and reproduces the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from trivium.config import Settings
from trivium.data.objectives_settings import OBJECTIVES_OF, CausalSettings, ObjectiveSettings, refuse_objective
from trivium.data.settings import DataSettings
from trivium.errors import UserError, nearest
from trivium.families import FAMILIES
from trivium.models.config import Kind, ModelConfig
from trivium.training.settings import TrainingSettings

# The family of a model of which a recipe states the kind only.
FAMILY_OF: dict[Kind, str] = {"decoder": "llama", "encoder": "bert", "encoder-decoder": "t5"}


class TokenizerSettings(Settings):
    """Which tokenizer turns text into ids."""

    path: str | None = None
    """A directory or `tokenizer.json` to use as it is; null learns a new tokenizer from the training text, or takes
    that of the model in `start_from`."""
    vocab_size: int = Field(default=8192, ge=260)
    """How many entries to learn, special tokens included; the smallest size learns no merges: one token a byte. With
    `path` it is not read: the model then has as many as that tokenizer."""


class Reference(Settings):
    """A published figure that the report shows beside the run's own."""

    name: str = Field(min_length=1)
    """Whose figure it is."""
    value: float
    """The figure."""
    unit: str = Field(min_length=1)
    """What it counts, such as `nats per character`."""


class PretrainRecipe(Settings):
    """A model learned from raw text."""

    run: str
    """Directory that the run writes into, relative to where the command is given."""
    stage: Literal["pretrain"] = "pretrain"
    """The stage of life; says which verb this recipe is for."""
    seed: int = 0
    """Every random draw of the run (weights, order of the data, dropout, samples) is derived from it."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where there is one."""
    threads: int = Field(default=0, ge=0)
    """Compute threads; 0 leaves the choice to torch (all cores)."""
    ignore_plan: bool = False
    """Begin even where the memory planned for the run is more than there is."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """How text becomes ids."""
    data: DataSettings
    """Which text, and how it becomes batches."""
    objective: ObjectiveSettings = CausalSettings()
    """What is learned from the text, or its name alone. Left out: what the kind of model usually learns (decoder:
    causal, encoder: masked, encoder-decoder: spans)."""
    start_from: str | None = None
    """A model (directory, run directory or hub id) whose weights the run begins with; `model` is then left out and is
    that model's, and so is the tokenizer, which need not be named. Null: fresh weights."""
    model: ModelConfig
    """The shape of the model; `family` (bert, t5, llama, marian, ...) fills in what makes it one of that family, and
    `kind` alone chooses bert, t5 or llama; `vocab_size`, `max_positions` and `decoder_start_id` follow tokenizer and
    data."""
    training: TrainingSettings
    """How the weights are learned."""
    sample_prompts: tuple[str, ...] = ()
    """Texts shown in the report with what the finished model makes of them: prompts to continue (decoder), texts with
    masks to fill in (encoder), sources (encoder-decoder)."""
    sample_tokens: int = Field(default=96, ge=1)
    """Most tokens generated for each sample."""
    reference: Reference | None = None
    """A published figure to show beside the run's own; null shows none."""

    @model_validator(mode="before")
    @classmethod
    def _model_follows_the_other_sections(cls, values: Any) -> Any:
        """Fill in what a family, the tokenizer and the data already state of the model, and the usual objective."""
        model = values.get("model") if isinstance(values, dict) else None
        if model is None and isinstance(values, dict) and isinstance(values.get("start_from"), str):
            model = _shape_of(values["start_from"])
            values = {**values, "model": model}
        if not isinstance(model, dict):
            kind = getattr(model, "kind", None)
        else:
            shape, stated = _of_family(model)
            model = {**shape, **_sizes(values, {**shape, **stated}), **stated}
            kind = model.get("kind", "decoder")
            values = {**values, "model": model}
        objective = values.get("objective") if isinstance(values, dict) else None
        if kind in OBJECTIVES_OF and (objective is None or isinstance(objective, dict)):
            values = {**values, "objective": {"name": OBJECTIVES_OF[kind][0], **(objective or {})}}
        return values

    @model_validator(mode="after")
    def _can_be_learned(self) -> PretrainRecipe:
        refuse_objective(self.objective.name, self.model.kind)
        if self.model.head != "lm":
            if self.start_from is not None:
                raise ValueError(
                    f"start_from: {self.start_from} has no token scores to learn (its head is {self.model.head}): name "
                    "a model with the head lm, such as the one it was made from"
                )
            raise ValueError(f"model.head={self.model.head} has no token scores to learn: leave it out")
        wanted, known = self.data.sequence_length, self.model.max_positions
        if self.model.positions == "learned" and wanted > known:
            if self.start_from is not None:
                raise ValueError(
                    f"data.sequence_length={wanted}, but {self.start_from} (start_from) has learned {known} positions: "
                    f"set data.sequence_length={known} or less"
                )
            raise ValueError(
                f"data.sequence_length={wanted}, but model.max_positions={known} positions are learned: leave "
                "max_positions out, or lower sequence_length"
            )
        return self


def start_directory(name: str) -> Path:
    """The directory of the model that `start_from` names."""
    from trivium.checkpoints.config_files import read_scheme  # only where it is needed: `--help` stays quick
    from trivium.checkpoints.resolve import resolve_model
    from trivium.quantization.schemes import refuse_packed

    try:
        path = resolve_model(name)
        if path.is_file():
            cure = f"trivium export {name} --to hf --out DIRECTORY"
            raise UserError(f"{name} is a GGUF file: make a directory of it first, and name that: {cure}")
        refuse_packed(read_scheme(path), "trained further", name)
    except UserError as error:
        raise UserError(f"start_from: {error}") from None
    return path


def _shape_of(name: str) -> ModelConfig:
    """The config of a model that exists."""
    from trivium.checkpoints.config_files import read_config  # only where it is needed: `--help` stays quick

    return read_config(start_directory(name))[1]


def _of_family(model: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields of the model's family, the fields its section states)."""
    model = dict(model)
    stated = model.pop("family", None)
    kind = model.get("kind", "decoder")
    name = stated or (FAMILY_OF.get(kind) if kind != "decoder" else None)
    if name is None:
        return {}, model
    if name not in FAMILIES:
        near = nearest(str(name), FAMILIES)
        guess = f"did you mean {near}? " if near else ""
        raise UserError(f"model.family: {name!r} is no family; {guess}known: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if model.get("kind", family.kind) != family.kind:
        raise UserError(f"model.family={name} is of kind {family.kind}, not {kind}: leave model.kind out")
    return {"kind": family.kind, **family.shape}, model


def _sizes(values: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Fields of the model that follow from the tokenizer and the data; those that are stated need not be looked up."""
    tokenizer, data = values.get("tokenizer"), values.get("data")
    sizes = {"max_positions": _stated(data, "sequence_length", DataSettings.model_fields["sequence_length"].default)}
    path = _stated(tokenizer, "path", None)
    starts = model.get("kind") == "encoder-decoder"
    if path is None:
        sizes["vocab_size"] = _stated(tokenizer, "vocab_size", TokenizerSettings.model_fields["vocab_size"].default)
    elif "vocab_size" not in model or (starts and "decoder_start_id" not in model):
        from trivium.tokenizer.bpe import Tokenizer  # only where it is needed: `--help` stays quick

        loaded = Tokenizer.load(str(path))
        sizes["vocab_size"] = loaded.vocab_size
        if starts and loaded.pad_id is not None:
            sizes["decoder_start_id"] = loaded.pad_id
    return sizes


def _stated(section: Any, key: str, default: Any) -> Any:
    """The value of `key` in a section that may be a mapping, a settings object, or missing."""
    if isinstance(section, dict):
        return section.get(key, default)
    return getattr(section, key, default)
