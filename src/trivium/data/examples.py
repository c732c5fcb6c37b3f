"""Rows of examples: texts cut to size, packed into rows before anything is drawn, made into tasks when they are read.

A document is cut into pieces no longer than what fits a row once it is a task. Pieces are packed in their order, each
row taking as many as fit (source and target each in T positions, by the most room they may take); so which pieces a row
holds depends on nothing that is drawn, and a row is found by its number. What is done to a piece is drawn from (seed,
epoch, row, place in the row): anew in every epoch, alike after a restart.

Each example is a segment of its own, in source and target alike, with positions from 0: no example sees another. Rows
of a batch are padded to the longest of them (segment 0, nothing learned).

Invariants its tests check: every piece is in exactly one row; a row is the same whenever it is asked for, and another
in another epoch; packed examples cost what they cost alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivium.data.batch import IGNORED, Batch
from trivium.data.order import draw_of
from trivium.data.shards import Shards
from trivium.data.tasks import MIN_TOKENS, Example, Room, Task, seq2seq_example
from trivium.errors import UserError

Ids = NDArray[np.int64]


class Pieces(Protocol):
    """What rows are packed of."""

    rooms: Ids
    """(pieces, 2): the most positions that the source and the target of each may take."""

    def example(self, number: int, draw: np.random.Generator) -> Example:
        """One piece as a task."""
        ...


class TextPieces:
    """The documents of some shards, cut to what a task has room for. Takes 32 bytes a piece."""

    def __init__(self, shards: Shards, task: Task, sequence_length: int) -> None:
        """UserError where `sequence_length` has no room for the shortest text, or no text is long enough."""
        self.shards, self.task = shards, task
        longest = longest_text(task, sequence_length)
        starts, ends = np.asarray(shards.offsets[:-1]), np.asarray(shards.offsets[1:]) - 1  # without the closing id
        counts = -(-(ends - starts) // longest)
        nth = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts = np.repeat(starts, counts) + nth * longest
        self.stops = np.minimum(self.starts + longest, np.repeat(ends, counts))
        kept = self.stops - self.starts >= MIN_TOKENS
        self.starts, self.stops = self.starts[kept], self.stops[kept]
        if not len(self.starts):
            raise UserError(f"{shards.directory}: no text has {MIN_TOKENS} tokens, the least a task can be made of")
        lengths, which = np.unique(self.stops - self.starts, return_inverse=True)
        rooms = [task.room(int(length)) for length in lengths]
        self.rooms = np.array([[room.source, room.target] for room in rooms], np.int64)[which]

    def example(self, number: int, draw: np.random.Generator) -> Example:
        """One piece as a task."""
        return self.task.example(self.shards.tokens(int(self.starts[number]), int(self.stops[number])), draw)


class PairPieces:
    """Sources with their targets; nothing is drawn. Pairs that are too long for a row are cut at their ends."""

    def __init__(self, sources: Shards, targets: Shards, task: PairTask, sequence_length: int) -> None:
        """`sources` and `targets` hold the two sides in the same order."""
        self.sources, self.targets, self.task, self._longest = sources, targets, task, sequence_length
        lengths = np.stack([np.diff(side.offsets) - 1 for side in (sources, targets)], axis=1)
        self.num_cut = int((lengths + task.width > sequence_length).any(axis=1).sum())
        self.rooms = np.minimum(lengths + task.width, sequence_length)

    def example(self, number: int, draw: np.random.Generator) -> Example:
        """One pair as a task."""
        room = self._longest - self.task.width
        return self.task.pair(*(side.document(number)[:-1][:room] for side in (self.sources, self.targets)))


class PairTask:
    """A target to be written when its source is given; both with the marks of a text."""

    def __init__(self, before: Sequence[int], after: Sequence[int], start_id: int) -> None:
        self.before, self.after, self.start_id = before, after, start_id
        self.width = len(before) + len(after)

    def pair(self, source: Ids, target: Ids) -> Example:
        """The example of a pair of texts."""
        wrapped = [np.concatenate([self.before, ids, self.after]).astype(np.int64) for ids in (source, target)]
        return seq2seq_example(wrapped[0], wrapped[1], self.start_id)


class ExampleRows:
    """Rows of T positions that hold whole examples."""

    def __init__(self, pieces: Pieces, sequence_length: int, seed: int, pad_id: int = 0) -> None:
        """`seed`: what is drawn depends on it, the epoch and the row."""
        self.pieces, self.sequence_length, self.seed, self.pad_id = pieces, sequence_length, seed, pad_id
        self.bounds = pack(pieces.rooms, sequence_length)
        self.widest = Room(*np.add.reduceat(pieces.rooms, self.bounds[:-1], axis=0).max(axis=0).tolist())

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.bounds) - 1

    def row(self, number: int, epoch: int = 0) -> list[Example]:
        """The examples of row `number` (0 <= number < len) as they are in one epoch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        first, end = self.bounds[number : number + 2].tolist()
        return [
            self.pieces.example(piece, draw_of(self.seed, epoch, number, piece - first)) for piece in range(first, end)
        ]

    def collate(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Rows as one batch, padded to the longest."""
        return collate_examples(rows, self.pad_id)

    def worst_case(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """A batch of so many rows, each as long as the longest of all rows may become."""
        return collate_examples(rows, self.pad_id, self.widest)


def longest_text(task: Task, sequence_length: int) -> int:
    """The most ids whose task fits a row."""
    if task.room(MIN_TOKENS).most > sequence_length:
        raise UserError(
            f"data.sequence_length={sequence_length} has no room for the task of {MIN_TOKENS} tokens: raise it to "
            f"{task.room(MIN_TOKENS).most} at least"
        )
    low, high = MIN_TOKENS, 2 * MIN_TOKENS
    while task.room(high).most <= sequence_length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if task.room(middle).most <= sequence_length else (low, middle)
    return low


def pack(rooms: Ids, sequence_length: int) -> Ids:
    """(rows + 1): the first piece of each row, and the number of pieces. No room is larger than a row."""
    sums = np.concatenate([np.zeros((1, rooms.shape[1]), np.int64), np.cumsum(rooms, axis=0)])
    bounds = [0]
    while bounds[-1] < len(rooms):
        most = sums[bounds[-1]] + sequence_length
        bounds.append(min(int(np.searchsorted(sums[:, side], most[side], "right")) for side in range(len(most))) - 1)
    return np.array(bounds, np.int64)


def collate_examples(rows: Sequence[Sequence[Example]], pad_id: int, widest: Room | None = None) -> Batch:
    """Rows of examples as one batch. With `widest`, rows are filled up to that, with targets, as the worst case."""
    examples = [example for row in rows for example in row]
    has_source = any(example.source is not None for example in examples)
    whole = widest is None and len(examples) == len(rows) and _all_equal(examples)
    width = None if widest is None else widest.target
    ids = _stacked(rows, "ids", pad_id, width)
    targets = _stacked(rows, "targets", IGNORED if widest is None else 0, width)
    source = _stacked(rows, "source", pad_id, None if widest is None else widest.source) if has_source else None
    if whole:
        return Batch(ids, targets, source_ids=source)
    positions, segments = _places(rows, "ids", ids.shape[1])
    if source is None:
        return Batch(ids, targets, positions, segments)
    source_positions, source_segments = _places(rows, "source", source.shape[1])
    return Batch(
        ids,
        targets,
        positions,
        segments,
        source_ids=source,
        source_positions=source_positions,
        source_segments=source_segments,
    )


def _all_equal(examples: Sequence[Example]) -> bool:
    """Whether there is nothing to pad."""
    return len({(len(each.ids), -1 if each.source is None else len(each.source)) for each in examples}) == 1


def _side(example: Example, name: str) -> Ids:
    value: Ids = getattr(example, name)
    return value


def _stacked(rows: Sequence[Sequence[Example]], name: str, filler: int, width: int | None) -> Tensor:
    """(B, width, or more where a row is longer): one side of all rows, filled up."""
    joined = [np.concatenate([_side(example, name) for example in row]) for row in rows]
    table = np.full((len(rows), max(width or 0, *map(len, joined))), filler, np.int64)
    for number, values in enumerate(joined):
        table[number, : len(values)] = values
    return torch.from_numpy(table)


def _places(rows: Sequence[Sequence[Example]], name: str, width: int) -> tuple[Tensor, Tensor]:
    """(positions, segments) of one side, (B, width) each."""
    positions, segments = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, 1):
            end = start + len(_side(example, name))
            positions[number, start:end] = np.arange(end - start)
            segments[number, start:end] = segment
            start = end
    return torch.from_numpy(positions), torch.from_numpy(segments)
