"""What a stage of life supplies to the one loop: where batches come from, and what the loss is.

The loop adds `sum` and `count` over micro-batches and ranks and divides once, so that accumulation, padding and data
parallelism cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from trivium.data.batch import Batch


@dataclass(frozen=True)
class LossReport:
    """One micro-batch's loss, not yet averaged."""

    sum: Tensor
    """() fp32 (or fp64), differentiable: the loss summed over `count` targets, in nats."""
    count: int
    """How many targets were summed (0 is allowed: such a micro-batch contributes nothing)."""
    scalars: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Further sums over the same targets to be shown, e.g. {"correct": 17}: divided by the global count as well.
    The names are the same in every report."""


class Objective(Protocol):
    """A loss. It holds whatever else it needs (a reference model, a value head)."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss of `batch` under `model`. Random draws come from torch's generators, which the loop seeds."""
        ...


class BatchSource(Protocol):
    """Where batches come from: addressed by step, so that resuming needs no replay."""

    @property
    def rows_per_step(self) -> int:
        """How many rows (R) all ranks together train on in one step."""
        ...

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches that this rank trains on in optimizer step `step` (counted from 0).

        Rank r of W takes the rows from `first_row_of_rank(R, r, W)` on, in order.
        """
        ...

    def worst_case(self) -> Batch | None:
        """The micro-batch that needs the most memory, tried before the first step; None when all are alike."""
        ...


def first_row_of_rank(rows_per_step: int, rank: int, world_size: int) -> int:
    """Where rank `rank`'s contiguous share of a step's rows begins; it ends where the next rank's begins."""
    return rows_per_step * rank // world_size
