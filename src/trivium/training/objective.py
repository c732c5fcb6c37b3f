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
    """Further sums over the same targets to be shown, e.g. {"correct": 17}: divided by the global count as well."""


class Objective(Protocol):
    """A loss. It holds whatever else it needs (a reference model, a value head)."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss of `batch` under `model`."""
        ...


class BatchSource(Protocol):
    """Where batches come from: addressed by step, so that resuming needs no replay."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches that this rank trains on in optimizer step `step` (counted from 0)."""
        ...

    def worst_case(self) -> Batch | None:
        """The micro-batch that needs the most memory, tried before the first step; None when all are alike."""
        ...
