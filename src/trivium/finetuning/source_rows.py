"""The rows of a recipe's sources as examples of a task, parted into those to learn and those held out.

An example is held out by the hash of what is asked in it (`data/split.py`), never of its answer: equal questions are
always on one side, whatever they are answered. With `data.validation` nothing of the training sources is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.split import is_held_out
from trivium.errors import UserError, nearest
from trivium.finetuning.data_settings import FinetuneData, RowSource, source_name

E = TypeVar("E")
ReadRows = Callable[[str], Iterator[Row]]


@dataclass(frozen=True)
class SourceExamples(Generic[E]):
    """The examples of one source on one side."""

    name: str
    examples: Sequence[E]
    weight: float | None = None
    """As the recipe has it."""


@dataclass(frozen=True)
class Split(Generic[E]):
    """Both sides of all sources."""

    train: Sequence[SourceExamples[E]]
    held_out: Sequence[SourceExamples[E]]
    """Those sources of which something is held out."""
    validated: bool = False
    """Whether these are sources of their own (`data.validation`)."""

    @property
    def learned(self) -> list[E]:
        """All examples to learn."""
        return [example for source in self.train for example in source.examples]

    @property
    def tested(self) -> list[E]:
        """All examples held out."""
        return [example for source in self.held_out for example in source.examples]

    @property
    def notes(self) -> list[str]:
        """What must be said of the two sides."""
        return [] if self.held_out else ["nothing is held out, so what is learned is not measured"]


def read_split(
    data: FinetuneData, parse: Callable[[Row], Iterable[E]], asked: Callable[[E], str], read: ReadRows = read_rows
) -> Split[E]:
    """`parse` makes the examples of a row; `asked` is the text an example's side is chosen by. UserError for rows that
    are not what the task needs, and where nothing is left to learn."""
    fraction = 0.0 if data.validation else data.held_out_fraction
    train, held_out = [], []
    for source in data.train:
        sides: tuple[list[E], list[E]] = ([], [])
        for example in _examples(source, parse, read):
            sides[fraction > 0 and is_held_out(asked(example), fraction)].append(example)
        if not sides[0]:
            raise UserError(f"{source.path}: no row is left to train on")
        train.append(SourceExamples(source_name(source), sides[0], source.weight))
        if sides[1]:
            held_out.append(SourceExamples(source_name(source), sides[1]))
    for source in data.validation or ():
        held_out.append(SourceExamples(source_name(source), list(_examples(source, parse, read))))
    return Split(train, held_out, data.validation is not None)


def _examples(source: RowSource, parse: Callable[[Row], Iterable[E]], read: ReadRows) -> Iterator[E]:
    """At most `max_rows` examples."""
    rows = (renamed(row, source.columns) for row in read(source.path))
    return itertools.islice(itertools.chain.from_iterable(map(parse, rows)), source.max_rows)


def renamed(row: Row, columns: dict[str, str]) -> Row:
    """The row with the keys that `columns` gives other names for under their own. UserError where one is not there."""
    if not columns:
        return row
    for theirs in columns.values():
        if theirs not in row.values:
            near = nearest(theirs, map(str, row.values))
            raise UserError(
                f"{row.where}: has no {theirs!r}, which columns names; "
                + (f"did you mean {near!r}? " if near else "")
                + f"its keys: {', '.join(map(repr, row.values))}"
            )
    kept = {key: value for key, value in row.values.items() if key not in columns.values()}
    values = {**kept, **{ours: row.values[theirs] for ours, theirs in columns.items()}}
    return Row(values, row.file, row.number, row.line)
