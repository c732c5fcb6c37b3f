"""Batches for pretraining: which rows a step trains on, and this process's share of them.

Step s trains on the global rows s R to (s + 1) R, of which rank r of W takes a contiguous share; a row's index decides
everything else (order.py). So nothing is replayed on resuming, and neither the number of processes nor the size of a
micro-batch changes what is learned when. The invariant its test checks: through any restarts and world sizes, the rows
of all steps are those of the undisturbed run, in the same order, each once per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from trivium.data.batch import Batch
from trivium.data.order import Mixture
from trivium.data.packing import PackedRow, PackedRows
from trivium.data.prepare import Prepared
from trivium.data.settings import DataSettings


class RowId(NamedTuple):
    """Which row was trained on, and for the how manieth time (from 0)."""

    source: int
    epoch: int
    row: int


class PackedSource:
    """A `BatchSource` over the packed rows of one or several sources."""

    def __init__(
        self,
        sources: Sequence[tuple[PackedRows, float | None]],
        *,
        rows_per_step: int,
        rows_per_micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`sources`: rows and weight of each; weights for all or for none. `rows_per_step` counts all ranks' rows."""
        self.sources = [rows for rows, _ in sources]
        if len({rows.sequence_length for rows in self.sources}) != 1:
            raise ValueError("all sources must have rows of one length")
        weights = [weight for _, weight in sources if weight is not None]
        if len(weights) not in (0, len(sources)):
            raise ValueError("give a weight to every source or to none")
        self._mixture = Mixture([len(rows) for rows in self.sources], weights or None, seed)
        self._rows_per_step = rows_per_step
        self._rows_per_micro_batch = rows_per_micro_batch
        self._rank, self._world_size = rank, world_size

    @property
    def rows_per_step(self) -> int:
        """Rows (R) that all ranks together train on in one step."""
        return self._rows_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps that train on as many rows as all sources together hold, rounded up."""
        return -(-sum(self._mixture.sizes) // self.rows_per_step)

    def row_ids(self, step: int) -> list[RowId]:
        """The rows of a step, of all ranks, in global order."""
        return self.rows_at(step * self.rows_per_step, (step + 1) * self.rows_per_step)

    def rows_at(self, start: int, stop: int) -> list[RowId]:
        """The rows with these global indices."""
        places = self._mixture.places(np.arange(start, stop, dtype=np.int64))
        columns = places.source.tolist(), places.epoch.tolist(), places.row.tolist()
        return [RowId(*values) for values in zip(*columns, strict=True)]

    def rank_row_ids(self, step: int) -> list[RowId]:
        """This rank's share of the rows of a step: from R r / W up to where the next rank's begins."""
        first, end = (self.rows_per_step * rank // self._world_size for rank in (self._rank, self._rank + 1))
        return self.rows_at(step * self.rows_per_step + first, step * self.rows_per_step + end)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's share of the rows of a step, cut into micro-batches (the last may be smaller)."""
        ids = self.rank_row_ids(step)
        for start in range(0, len(ids), self._rows_per_micro_batch):
            chosen = ids[start : start + self._rows_per_micro_batch]
            yield collate([self.sources[source].row(row) for source, _, row in chosen])

    def worst_case(self) -> Batch:
        """A full micro-batch, with positions and segments if any row needs them."""
        wanted = -(-self.rows_per_step // self._world_size)
        ids = self.rows_at(0, min(self._rows_per_micro_batch, wanted))
        plain = all(rows.are_plain for rows in self.sources)
        return collate([self.sources[source].row(row) for source, _, row in ids], always_segments=not plain)


class EvaluationRows:
    """This rank's share of held-out rows, in order, as micro-batches; may be gone through again and again."""

    def __init__(
        self,
        rows: PackedRows,
        rows_per_micro_batch: int,
        *,
        max_rows: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`max_rows`: take only so many rows (over all ranks), spread evenly."""
        self._rows = rows
        self._rows_per_micro_batch = rows_per_micro_batch
        taken = len(rows) if max_rows is None else min(max_rows, len(rows))
        share = range(taken * rank // world_size, taken * (rank + 1) // world_size)
        self._numbers = [number * len(rows) // taken for number in share]

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._numbers), self._rows_per_micro_batch):
            chosen = self._numbers[start : start + self._rows_per_micro_batch]
            yield collate([self._rows.row(number) for number in chosen])

    def __len__(self) -> int:
        """How many micro-batches there are."""
        return -(-len(self._numbers) // self._rows_per_micro_batch)


def collate(rows: Sequence[PackedRow], *, always_segments: bool = False) -> Batch:
    """Rows as one batch; positions and segments are left out when causal attention alone is right for every row."""
    ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    targets = torch.from_numpy(np.stack([row.targets for row in rows]))
    if not always_segments and all(row.is_plain for row in rows):
        return Batch(ids, targets)
    positions = torch.from_numpy(np.stack([row.positions for row in rows]))
    return Batch(ids, targets, positions, torch.from_numpy(np.stack([row.segments for row in rows])))


def training_source(
    prepared: Prepared, settings: DataSettings, *, seed: int, rank: int = 0, world_size: int = 1
) -> PackedSource:
    """The batches that `settings` asks for."""
    return PackedSource(
        [(PackedRows(shards, settings.sequence_length), weight) for shards, weight in prepared.train],
        rows_per_step=settings.rows_per_step,
        rows_per_micro_batch=settings.rows_per_micro_batch,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def evaluation_rows(
    prepared: Prepared, settings: DataSettings, *, rank: int = 0, world_size: int = 1
) -> EvaluationRows | None:
    """The held-out micro-batches that `settings` asks for; None where nothing is held out."""
    if prepared.held_out is None:
        return None
    return EvaluationRows(
        PackedRows(prepared.held_out, settings.sequence_length),
        settings.rows_per_micro_batch,
        max_rows=settings.evaluation_rows,
        rank=rank,
        world_size=world_size,
    )
