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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORED
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

    def row(self, number: int) -> PackedRow:
        """Row `number` (0 <= number < len)."""
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
