"""Rows for pretraining: the stream of documents cut every T ids, with the documents kept apart.

The targets of row i are the ids at positions i T to (i + 1) T of the stream; its inputs are the ids before them, and
before the first id of a document stands the beginning-of-text id (the id that closed the document before it, where a
tokenizer has one id for both). So every id is learned exactly once, the first id of a document and the end-of-text id
after its last among them, and a model is trained from just the beginning that it is given when it generates or is
measured. Positions restart at 0 and the segment number grows by one at each document; no token attends to, or is
predicted from, another document (attention across documents is the usual leak of packing). The last row is filled up
with padding (segment 0). Every row is computed from its number alone.

The invariants its test checks: the targets of all rows are the stream, each id once; inputs are what comes before
within the document; all documents can be put together again from the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from trivium.data.batch import IGNORED, Batch
from trivium.data.order import draw_of
from trivium.data.shards import Shards


@dataclass(frozen=True)
class PackedRow:
    """One row of T positions."""

    ids: NDArray[np.int64]
    """(T)"""
    targets: NDArray[np.int64]
    """(T): the id that follows within the document; `IGNORED` in padding."""
    positions: NDArray[np.int64]
    """(T): 0, 1, ... from the start of the document, or of the row where the document began earlier."""
    segments: NDArray[np.int32]
    """(T): 1, 2, ... for the documents of the row; 0 is padding."""
    prefix: NDArray[np.bool_] | None = None
    """(T): what all of its document may see; None: nothing."""

    @property
    def is_plain(self) -> bool:
        """True when the row is one document (or part of one) without padding, so that causal attention alone is
        right."""
        return bool(self.segments[0] == self.segments[-1] == 1)


class PackedRows:
    """All rows of some shards, by number."""

    def __init__(self, shards: Shards, sequence_length: int) -> None:
        """Rows of `sequence_length` (T) positions."""
        self.shards = shards
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        """How many rows there are."""
        return -(-self.shards.num_tokens // self.sequence_length)

    @property
    def are_plain(self) -> bool:
        """True when every row is plain: a single document that fills its rows exactly."""
        return self.shards.num_documents <= 1 and self.shards.num_tokens % self.sequence_length == 0

    def row(self, number: int, epoch: int = 0) -> PackedRow:
        """Row `number` (0 <= number < len), the same in every epoch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        length = self.sequence_length
        start = number * length
        stop = min(start + length, self.shards.num_tokens)
        ids, targets = np.zeros(length, np.int64), np.full(length, IGNORED, np.int64)
        positions, segments = np.zeros(length, np.int64), np.zeros(length, np.int32)
        before = max(start - 1, 0)
        stream = self.shards.tokens(before, stop)
        targets[: stop - start] = stream[start - before :]
        ids[before + 1 - start : stop - start] = stream[:-1]
        # Where documents begin within the row.
        offsets = self.shards.offsets
        first, last = np.searchsorted(offsets, [start, stop], side="left")
        starts = np.asarray(offsets[first:last]) - start
        ids[starts] = self.shards.index.start_id
        bounds = [0, *starts[starts > 0].tolist(), stop - start]
        for segment, (begin, end) in enumerate(itertools.pairwise(bounds), 1):
            positions[begin:end] = np.arange(end - begin)
            segments[begin:end] = segment
        return PackedRow(ids, targets, positions, segments)

    def collate(self, rows: Sequence[PackedRow]) -> Batch:
        """Rows as one batch."""
        return collate(rows)

    def worst_case(self, rows: Sequence[PackedRow]) -> Batch:
        """A batch of so many rows that needs as much memory as any; with segments if any row needs them."""
        return collate(rows, always_segments=not self.are_plain)


class PrefixRows(PackedRows):
    """The same rows, where the beginning of each document is seen both ways and the rest is learned.

    Of m positions of a document (or of the part of it in the row), the first 1 to m are the prefix, each number equally
    likely; the last of them predicts the first id after the prefix, and those before it predict nothing, since they see
    what comes next. (Liu et al., 2018; Raffel et al., 2020, section 3.2.1.)
    """

    def __init__(self, shards: Shards, sequence_length: int, seed: int) -> None:
        """`seed`: what the lengths of the prefixes are drawn from, with epoch and row."""
        super().__init__(shards, sequence_length)
        self.seed = seed

    def row(self, number: int, epoch: int = 0) -> PackedRow:
        """Row `number` as it is in one epoch."""
        row = super().row(number)
        draw = draw_of(self.seed, epoch, number)
        prefix, targets = np.zeros(len(row.ids), dtype=bool), row.targets.copy()
        for begin, end in documents_of(row):
            length = int(draw.integers(1, end - begin + 1))
            prefix[begin : begin + length] = True
            targets[begin : begin + length - 1] = IGNORED
        return replace(row, targets=targets, prefix=prefix)


def documents_of(row: PackedRow) -> Iterator[tuple[int, int]]:
    """(first position, one after the last) of each document in a row."""
    bounds = np.flatnonzero(np.diff(row.segments, prepend=0, append=0)).tolist()
    return ((begin, end) for begin, end in itertools.pairwise(bounds) if row.segments[begin])


def collate(rows: Sequence[PackedRow], *, always_segments: bool = False) -> Batch:
    """Rows as one batch; positions and segments are left out when every row is one document without padding."""
    ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    targets = torch.from_numpy(np.stack([row.targets for row in rows]))
    masks = [row.prefix for row in rows if row.prefix is not None]
    prefix = torch.from_numpy(np.stack(masks)) if masks else None
    if not always_segments and all(row.is_plain for row in rows):
        return Batch(ids, targets, prefix=prefix)
    positions = torch.from_numpy(np.stack([row.positions for row in rows]))
    segments = torch.from_numpy(np.stack([row.segments for row in rows]))
    return Batch(ids, targets, positions, segments, prefix=prefix)
