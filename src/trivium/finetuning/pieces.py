"""Rendered rows, cut to size and held as arrays: what `data/examples.py` packs.

A decoder's example reads ids 0 to n - 2 and learns ids 1 to n - 1, those that are to be learned. What is too long loses
the middle of what stands before the first learned id (down to a quarter of a row), then its own end: something of a
target always stays, and no end of text is put where an answer is cut. An encoder-decoder's source loses the end of its
text, its target its end.

Invariants its tests check: no row without a target; unlearned ids never reach the loss; what is packed beside an
example changes its loss by exactly nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORED
from trivium.data.examples import ExampleRows
from trivium.data.tasks import Example, Room, seq2seq_example
from trivium.errors import UserError
from trivium.finetuning.rendering import Renderable, Rendered, Renderer
from trivium.progress import SILENT, Progress

# Share of a row that what stands before the first learned id may keep, however long the answer is.
PROMPT_SHARE = 4
# Of a prompt that is cut, this part is kept from its beginning.
HEAD_SHARE = 4
# Rows named in a note about what was left out.
PLACES_NAMED = 3


@dataclass(frozen=True)
class Sourced:
    """A row as it was read, and where."""

    row: Renderable
    where: str
    """File and row."""


@dataclass
class Left:
    """What did not become an example whole."""

    dropped: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of each row that was left out."""
    num_cut: int = 0

    def notes(self, length: int) -> list[str]:
        """Both, for people."""
        notes = []
        for why in dict.fromkeys(why for _, why in self.dropped):
            places = [where for where, other in self.dropped if other == why]
            more = f" and {len(places) - PLACES_NAMED} more" if len(places) > PLACES_NAMED else ""
            rows = "1 row is" if len(places) == 1 else f"{len(places)} rows are"
            notes.append(f"{rows} left out, {why}: {'; '.join(places[:PLACES_NAMED])}{more}")
        if self.num_cut:
            notes.append(f"{self.num_cut} examples were longer than a row of {length} tokens and are cut")
        return notes


NOTHING_LEARNED = "since nothing in them is learned"


class InstructPieces:
    """Examples of a task by text, as compact arrays: about 5 bytes a token."""

    def __init__(
        self, examples: Sequence[Rendered], start_id: int = 0, wheres: Sequence[str] = (), left: Left | None = None
    ) -> None:
        """Each example has a target, and fits a row. `start_id`: an encoder-decoder's target begins with it. `wheres`
        says where each is from, `left` what did not become one of them."""
        self._start_id, self.wheres, self.left = start_id, wheres, left or Left()
        self._ids = _joined([each.ids for each in examples], np.int32)
        self._learned = _joined([each.learned for each in examples], np.bool_)
        self._ends = np.cumsum([0, *(len(each.ids) for each in examples)])
        self._sources = None
        sources = [[] if each.source is None else each.source for each in examples]
        if any(each.source is not None for each in examples):
            self._sources = _joined(sources, np.int32)
        self._source_ends = np.cumsum([0, *map(len, sources)])
        targets = np.diff(self._ends) - (self._sources is None)
        self.rooms: NDArray[np.int64] = np.stack([np.diff(self._source_ends), targets], axis=1).astype(np.int64)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._ends) - 1

    @property
    def num_learned(self) -> int:
        """How many of their ids are learned."""
        return int(self._learned.sum())

    @property
    def num_tokens(self) -> int:
        """Ids of all examples."""
        return int(self._ends[-1] + self._source_ends[-1])

    def rendered(self, number: int) -> Rendered:
        """One example, as it was rendered and cut."""
        start, end = self._ends[number : number + 2].tolist()
        source = None
        if self._sources is not None:
            first, last = self._source_ends[number : number + 2].tolist()
            source = self._sources[first:last].tolist()
        return Rendered(self._ids[start:end].tolist(), self._learned[start:end].tolist(), source)

    def example(self, number: int, draw: np.random.Generator) -> Example:
        """One example; nothing is drawn."""
        start, end = self._ends[number : number + 2].tolist()
        ids = self._ids[start:end].astype(np.int64)
        targets = np.where(self._learned[start:end], ids, IGNORED)
        if self._sources is None:
            return Example(ids[:-1], targets[1:])
        first, last = self._source_ends[number : number + 2].tolist()
        made = seq2seq_example(self._sources[first:last].astype(np.int64), ids, self._start_id)
        return Example(made.ids, targets, made.source)


def _joined(rows: Sequence[Sequence[int]], dtype: type[np.generic]) -> NDArray[np.generic]:
    """One array of all rows."""
    return np.fromiter((value for row in rows for value in row), dtype, sum(map(len, rows)))


class InstructRows(ExampleRows):
    """Examples as rows: several in each where `packing`, else one."""

    pieces: InstructPieces

    def __init__(
        self, pieces: InstructPieces, sequence_length: int, seed: int, pad_id: int = 0, *, packing: bool = True
    ) -> None:
        """As `ExampleRows`."""
        super().__init__(pieces, sequence_length, seed, pad_id)
        if not packing:
            self.bounds = np.arange(len(pieces) + 1)
            self.widest = Room(*pieces.rooms.max(axis=0).tolist())


def rendered_pieces(
    rows: Sequence[Sourced],
    renderer: Renderer,
    length: int,
    left: Left,  # added to
    *,
    start_id: int = 0,
    name: str = "rows",
    progress: Progress = SILENT,
) -> InstructPieces | None:
    """The examples of some rows, at most `length` positions each; None where none is left. UserErrors name the row."""
    made: list[Rendered] = []
    wheres: list[str] = []
    after = len(renderer.source_ends)
    progress.start(f"writing {name} as the model reads them", total=len(rows), unit="rows")
    for sourced in rows:
        try:
            rendered = renderer.render(sourced.row)
        except UserError as error:
            raise UserError(f"{sourced.where}: {error}") from None
        found = [cut for each in rendered if (cut := cut_to(each, length, after)) is not None]
        if not found:
            left.dropped.append((sourced.where, NOTHING_LEARNED))
        left.num_cut += sum(each.is_cut for each in found)
        made += [_compact(each) for each in found]
        wheres += [sourced.where] * len(found)
        progress.advance()
    progress.finish()
    return InstructPieces(made, start_id, wheres, left) if made else None


def _compact(rendered: Rendered) -> Rendered:
    """The same in arrays, which take an eighth of the room."""
    source = None if rendered.source is None else np.array(rendered.source, np.int32)
    return Rendered(np.array(rendered.ids, np.int32), np.array(rendered.learned, np.bool_), source)  # type: ignore[arg-type]


def cut_to(rendered: Rendered, length: int, source_marks: int = 0) -> Rendered | None:
    """At most `length` positions, with something to learn; None where there is nothing. The last `source_marks` ids of
    a source end it, and stay."""
    if rendered.source is not None:
        if not any(rendered.learned):
            return None
        source = rendered.source
        is_cut = len(source) > length or len(rendered.ids) > length
        if len(source) > length:
            source = [*source[: length - source_marks], *source[len(source) - source_marks :]][-length:]
        return Rendered(rendered.ids[:length], rendered.learned[:length], source, is_cut)
    learned = [number for number, is_learned in enumerate(rendered.learned) if is_learned and number]
    if not learned:
        return None
    first, end = learned[0], learned[-1] + 1
    kept = prompt_places(first, max(length - (end - first - 1), length // PROMPT_SHARE, 1))
    places = [*kept, *range(first, end)][: length + 1]
    is_cut = len(places) < end
    is_learned = [rendered.learned[n] and n > 0 for n in places]  # nothing predicts the first
    return Rendered([rendered.ids[n] for n in places], is_learned, None, is_cut)


def prompt_places(size: int, room: int) -> list[int]:
    """Which of `size` ids before an answer stay when there is room for `room`: the beginning and, mostly, the end."""
    if size <= room:
        return list(range(size))
    head = max(room // HEAD_SHARE, int(room > 1))
    return [*range(head), *range(size - (room - head), size)]
