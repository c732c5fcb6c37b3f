"""Which rows a model is fine-tuned on, and how they become batches (read by `--help`, so no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import Settings


class RowSource(Settings):
    """One source of rows."""

    path: str = Field(min_length=1)
    """A file, folder, glob or hub id; in a folder with a `dataset_info.json` also `FOLDER:NAME`, an entry of it."""
    name: str | None = None
    """What its measures are called; null: the last part of the path."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How often its rows come, relative to the others; null for all: by their size (`data.weigh_by`)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Other names of keys in these rows: {prompt: question, response: answer}."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most rows read; null reads all."""


def _list_of_sources(value: Any) -> Any:
    """A path alone is a list of one source, and a text in the list is a source's path."""
    values = [value] if isinstance(value, str | dict | RowSource) else value
    if not isinstance(values, list | tuple):
        return values
    return [{"path": entry} if isinstance(entry, str) else entry for entry in values]


RowSources = Annotated[tuple[RowSource, ...], BeforeValidator(_list_of_sources), Field(min_length=1)]


class ReplaySettings(Settings):
    """General text that is learned on beside the rows, against forgetting."""

    paths: Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = (
        "stdlib",
    )
    """Files, folders, globs or hub ids of text; `stdlib`: the Python standard library. What the ledger measures is
    never among it."""
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of all rows of a step that are general text."""


class FinetuneData(Settings):
    """Where rows come from, which are held out, and how they are cut into steps."""

    train: RowSources
    """The training rows: a path, or a list of paths or of {path, weight, ...}."""
    validation: RowSources | None = None
    """Held-out rows; null holds out a part of each training source instead."""
    held_out_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of each training source that is held out, chosen by the hash of the row; not read with `validation`."""
    weigh_by: Literal["rows", "tokens"] = "rows"
    """What a source's size and weight count."""
    temperature: float = Field(default=1.0, ge=1)
    """Sources are drawn in proportion to size ** (1 / temperature): 1 as they are, large values all alike."""
    replay: ReplaySettings | None = None
    """General text to learn on beside the rows; null: none."""
    sequence_length: int = Field(default=512, ge=2)
    """Positions in a row; longer examples are cut, the prompt first, so that something of each target stays."""
    packing: bool = True
    """Put several examples into a row where they fit; none sees another. (Tasks with a head never do.)"""
    rows_per_step: int = Field(default=16, ge=1)
    """Rows in one optimizer step, over all processes."""
    rows_per_micro_batch: int = Field(default=4, ge=1)
    """Rows computed at once in each process: changes memory and speed, not what is learned."""
    evaluation_rows: int | None = Field(default=256, ge=1)
    """Most held-out rows of each source used in one evaluation, spread evenly; null uses all."""

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneData:
        weighted = sum(source.weight is not None for source in self.train)
        if weighted not in (0, len(self.train)):
            raise ValueError(f"train: {weighted} of {len(self.train)} sources have a weight; give it to all or none")
        for sources in (self.train, self.validation or ()):
            names = [source_name(source) for source in sources]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two sources are called {', '.join(twice)}: give each a name of its own (name: ...)")
        return self


def source_name(source: RowSource) -> str:
    """What the source is called in measures."""
    return source.name or source.path.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].split(".")[0] or source.path
