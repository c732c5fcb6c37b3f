"""Which text a model learns from, and how it becomes batches: `DataSettings` (read by `--help`, so no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import Settings

TextLayout = Literal["file", "line"]
HeldOutBy = Literal["document", "tail"]

# Share of the training text that is held out where nothing else is said.
DEFAULT_HELD_OUT_FRACTION = 0.01


class SourceSettings(Settings):
    """One source of training text."""

    path: str = Field(min_length=1)
    """A file, folder, glob, hub id (`owner/name:config@split`), or `stdlib`: the Python standard library."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How often rows come from this source, relative to the others; null for all: in proportion to their sizes."""


def _list_of_sources(value: Any) -> Any:
    """A path alone is a list of one source, and a text in the list is a source's path."""
    values = [value] if isinstance(value, str | dict | SourceSettings) else value
    if not isinstance(values, list | tuple):
        return values
    return [{"path": entry} if isinstance(entry, str) else entry for entry in values]


def _list_of_paths(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DataSettings(Settings):
    """Where text comes from, which part is held out, and how it is cut into rows, micro-batches and steps."""

    train: Annotated[tuple[SourceSettings, ...], BeforeValidator(_list_of_sources), Field(min_length=1)]
    """The training text: a path, or a list of paths or of {path, weight}."""
    validation: Annotated[tuple[str, ...], BeforeValidator(_list_of_paths), Field(min_length=1)] | None = None
    """Paths of held-out text; null holds out a part of the training text instead."""
    held_out_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of the training text that is held out; null: 0.01, or nothing where `validation` is given."""
    held_out_by: HeldOutBy = "document"
    """Hold out whole documents, chosen by their hash, or the `tail` of every document: for a few long texts."""
    text_layout: TextLayout = "file"
    """Whether a .txt file is one document or holds one on each `line`."""
    text_key: str = "text"
    """Key or column that holds the document in jsonl, json, csv, tsv, parquet and hub rows."""
    max_documents: int | None = Field(default=None, ge=1)
    """Most documents read from each source; null reads all."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Reading a source ends with the document that reaches so many UTF-8 bytes; null reads all."""
    sequence_length: int = Field(default=512, ge=2)
    """Positions in a row: how far the model can look back in training."""
    rows_per_step: int = Field(default=64, ge=1)
    """Rows in one optimizer step, over all processes; with `sequence_length` this is the batch in tokens."""
    rows_per_micro_batch: int = Field(default=8, ge=1)
    """Rows computed at once in each process: changes memory and speed, not what is learned."""
    evaluation_rows: int | None = Field(default=None, ge=1)
    """Most held-out rows used in one evaluation, spread evenly over all of them; null uses all."""
    cache_directory: str | None = None
    """Where tokenized text is kept and found again; null: `trivium` in the user's cache folder."""
    verify_cache: bool = True
    """Re-read tokenized text that is found in the cache and compare its SHA-256 before it is used."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        weighted = sum(source.weight is not None for source in self.train)
        if weighted not in (0, len(self.train)):
            raise ValueError(f"train: {weighted} of {len(self.train)} sources have a weight; give it to all or none")
        if self.validation is not None and self.held_out_fraction:
            raise ValueError("held_out_fraction and validation exclude each other; remove one of them")
        return self

    @property
    def resolved_held_out_fraction(self) -> float:
        """The share of the training text that is really held out."""
        if self.held_out_fraction is not None:
            return self.held_out_fraction
        return DEFAULT_HELD_OUT_FRACTION if self.validation is None else 0.0
