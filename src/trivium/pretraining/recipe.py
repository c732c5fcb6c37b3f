"""The recipe of a pretraining run: one file that names everything the run depends on.

A recipe picks the parts and repeats none of their settings: each section is the settings class of the part it
configures. The resolved recipe is saved in the run directory and reproduces the run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trivium.config import Settings
from trivium.data.settings import DataSettings
from trivium.models.config import ModelConfig
from trivium.training.settings import TrainingSettings


class TokenizerSettings(Settings):
    """Which tokenizer turns text into ids."""

    path: str | None = None
    """A directory or `tokenizer.json` to use as it is; null learns a new tokenizer from the training text."""
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
    tokenizer: TokenizerSettings = TokenizerSettings()
    """How text becomes ids."""
    data: DataSettings
    """Which text, and how it becomes batches."""
    model: ModelConfig
    """The shape of the model; `vocab_size` and `max_positions` may be left out and follow tokenizer and data."""
    training: TrainingSettings
    """How the weights are learned."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts continued by the finished model and shown in the report."""
    sample_tokens: int = Field(default=96, ge=1)
    """Tokens generated for each sample prompt."""
    reference: Reference | None = None
    """A published figure to show beside the run's own; null shows none."""

    @model_validator(mode="before")
    @classmethod
    def _model_follows_tokenizer_and_data(cls, values: Any) -> Any:
        """Fill in the two sizes of the model that other sections already state."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict):
            return values
        tokenizer, data = values.get("tokenizer"), values.get("data")
        path = _stated(tokenizer, "path", None)
        if path is None:
            vocab_size = _stated(tokenizer, "vocab_size", TokenizerSettings.model_fields["vocab_size"].default)
        elif "vocab_size" not in model:
            from trivium.tokenizer.bpe import Tokenizer  # only where it is needed: `--help` stays quick

            vocab_size = Tokenizer.load(str(path)).vocab_size
        else:
            vocab_size = model["vocab_size"]
        length = _stated(data, "sequence_length", DataSettings.model_fields["sequence_length"].default)
        return {**values, "model": {"vocab_size": vocab_size, "max_positions": length, **model}}


def _stated(section: Any, key: str, default: Any) -> Any:
    """The value of `key` in a section that may be a mapping, a settings object, or missing."""
    if isinstance(section, dict):
        return section.get(key, default)
    return getattr(section, key, default)
