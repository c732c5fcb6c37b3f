"""Batches for pretraining: which rows a step trains on, and this process's share of them.

Step s trains on the global rows s R to (s + 1) R, of which rank r of W takes a contiguous share; a row's index decides
everything else (order.py). So nothing is replayed on resuming, and neither the number of processes nor the size of a
micro-batch changes what is learned when. The invariant its test checks: through any restarts and world sizes, the rows
of all steps are those of the undisturbed run, in the same order, each once per epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from trivium.data.batch import Batch
from trivium.data.examples import ExampleRows, PairPieces, PairTask, TextPieces
from trivium.data.marks import Marks
from trivium.data.objectives_settings import CausalSettings, ObjectiveSettings, PrefixSettings
from trivium.data.order import Mixture, key_of
from trivium.data.packing import PackedRows, PrefixRows
from trivium.data.pairs import PairShards, PreparedPairs
from trivium.data.prepare import Prepared
from trivium.data.settings import DataSettings
from trivium.data.shards import Shards
from trivium.data.tasks import build_task
from trivium.models.config import Kind


class RowId(NamedTuple):
    """Which row was trained on, and for the how manieth time (from 0)."""

    source: int
    epoch: int
    row: int


class Rows(Protocol):
    """The rows of one source, by number: packed text, or packed examples of a task."""

    @property
    def sequence_length(self) -> int:
        """Positions in a row, at most."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def row(self, number: int, epoch: int = 0) -> Any:
        """One row as it is in one epoch."""
        ...

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Rows, of this source or of others of its kind, as one batch."""
        ...

    def worst_case(self, rows: Sequence[Any]) -> Batch:
        """A batch of so many rows that needs as much memory as any."""
        ...


class PackedSource:
    """A `BatchSource` over the packed rows of one or several sources."""

    def __init__(
        self,
        sources: Sequence[tuple[Rows, float | None]],
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
    def num_rows(self) -> int:
        """Rows that all sources together hold."""
        return sum(self._mixture.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that train on as many rows as all sources together hold, rounded up."""
        return -(-self.num_rows // self.rows_per_step)

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
            yield self.sources[0].collate([self.sources[source].row(row, epoch) for source, epoch, row in chosen])

    def worst_case(self) -> Batch:
        """A full micro-batch of the source that needs the most memory."""
        wanted = -(-self.rows_per_step // self._world_size)
        ids = self.rows_at(0, min(self._rows_per_micro_batch, wanted))
        rows = [self.sources[source].row(row, epoch) for source, epoch, row in ids]
        return max((source.worst_case(rows) for source in self.sources), key=_num_elements)


def _num_elements(batch: Batch) -> int:
    """Positions of a batch, and whether it has segments, which cost a mask."""
    source = 0 if batch.source_ids is None else batch.source_ids.numel()
    return 2 * (batch.ids.numel() + source) + (batch.segments is not None)


class EvaluationRows:
    """This rank's share of held-out rows, in order, as micro-batches; may be gone through again and again."""

    def __init__(
        self,
        rows: Rows,
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
            yield self._rows.collate([self._rows.row(number) for number in chosen])

    def __len__(self) -> int:
        """How many micro-batches there are."""
        return -(-len(self._numbers) // self._rows_per_micro_batch)


def rows_for(
    shards: Shards | PairShards,
    settings: DataSettings,
    objective: ObjectiveSettings,
    kind: Kind,
    marks: Marks | None,
    seed: int,
) -> Rows:
    """The rows of one source for an objective and a kind of model; `marks` for all objectives but `causal`."""
    length = settings.sequence_length
    if isinstance(shards, PairShards):
        assert marks is not None
        task = PairTask(marks.before, marks.after, marks.start_id)
        return ExampleRows(PairPieces(shards.sources, shards.targets, task, length), length, seed, marks.pad_id)
    if isinstance(objective, CausalSettings):
        return PackedRows(shards, length)
    if isinstance(objective, PrefixSettings) and kind == "decoder":
        return PrefixRows(shards, length, seed)
    assert marks is not None
    return ExampleRows(TextPieces(shards, build_task(objective, marks), length), length, seed, marks.pad_id)


def training_source(
    prepared: Prepared | PreparedPairs,
    settings: DataSettings,
    *,
    seed: int,
    objective: ObjectiveSettings | None = None,
    kind: Kind = "decoder",
    marks: Marks | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> PackedSource:
    """The batches that `settings` asks for; `objective` None: `causal`."""
    objective = objective or CausalSettings()
    sources: Sequence[tuple[Shards | PairShards, float | None]] = prepared.train
    return PackedSource(
        [
            (rows_for(shards, settings, objective, kind, marks, key_of(seed, "task", number)), weight)
            for number, (shards, weight) in enumerate(sources)
        ],
        rows_per_step=settings.rows_per_step,
        rows_per_micro_batch=settings.rows_per_micro_batch,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def evaluation_rows(
    prepared: Prepared | PreparedPairs,
    settings: DataSettings,
    *,
    objective: ObjectiveSettings | None = None,
    kind: Kind = "decoder",
    marks: Marks | None = None,
    all_rows: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> EvaluationRows | None:
    """The held-out micro-batches that `settings` asks for; None where nothing is held out.

    What an objective draws, it draws alike in every evaluation and in every run. `all_rows`: whatever
    `settings.evaluation_rows` says.
    """
    if prepared.held_out is None:
        return None
    return EvaluationRows(
        rows_for(prepared.held_out, settings, objective or CausalSettings(), kind, marks, key_of("held-out task")),
        settings.rows_per_micro_batch,
        max_rows=None if all_rows else settings.evaluation_rows,
        rank=rank,
        world_size=world_size,
    )
