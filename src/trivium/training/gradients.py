"""The gradient of one optimizer step: summed over micro-batches and ranks, divided once.

For micro-batches with loss sums S_i over n_i targets the gradient is (sum_i grad S_i) / (sum_i n_i). The mean of
per-batch means, which most trainers take, weights a target in a short batch more than one in a long batch.

Randomness (dropout, masking) is drawn from torch's generators, seeded before each micro-batch by (run seed, step,
first row of the micro-batch): nothing has to be stored to resume, and a row's draws do not depend on the rank it is on.

Invariants its test checks: one batch of 16, 16 of 1, and 2 ranks of 8 give gradients equal to 1e-12 in fp64; a
micro-batch without targets changes nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trivium.data.batch import Batch
from trivium.runtime import Runtime
from trivium.training.distributed import Peers, digest_of_names
from trivium.training.objective import Objective, first_row_of_rank
from trivium.training.precision import autocast


@dataclass
class Sums:
    """What micro-batches leave beside their gradients; sums, not means."""

    loss: float = 0.0
    targets: int = 0
    tokens: int = 0
    scalars: Mapping[str, float] | None = None
    """None until the first report says what the names are."""


@dataclass(frozen=True)
class StepReport:
    """One step, over all micro-batches and ranks."""

    loss: float
    """Mean over all targets, in nats (NaN when there are none)."""
    targets: int
    tokens: int
    scalars: Mapping[str, float]
    """Means over all targets."""
    gradient_norm: float
    """Euclidean length of the mean loss's gradient, before clipping."""


def micro_batch_seed(seed: int, step: int, first_row: int) -> int:
    """The seed of a micro-batch's random draws: a hash, so that neighbours have nothing in common."""
    digest = hashlib.blake2b(f"{seed}/{step}/{first_row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class GradientMaker:
    """Leaves the gradient of a step in the parameters' `.grad`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        runtime: Runtime,
        peers: Peers,
        rows_per_step: int,
    ) -> None:
        self.model, self.objective, self.parameters = model, objective, parameters
        self.runtime, self.peers = runtime, peers
        self.device = runtime.torch_device()
        self.first_row = first_row_of_rank(rows_per_step, peers.rank, peers.world_size)
        self.scalar_names: tuple[str, ...] | None = None
        self.reached: list[bool] | None = None
        """Which parameters got a gradient in the first step that had targets."""

    def make(self, batches: Iterable[Batch], step: int, loss_scale: float = 1.0) -> StepReport:
        """Compute the step's gradient; there must be none in the parameters yet.

        With no target on any rank the parameters are left without a gradient.
        """
        sums = self.accumulate(batches, step, loss_scale)
        report = self._over_ranks(sums)
        if report.targets == 0:
            return report
        if self.reached is None:
            reached = self.peers.sum([float(p.grad is not None) for p in self.parameters])
            self.reached = [count > 0 for count in reached]
        gradients = [_gradient_of(parameter) for parameter in self.parameters]
        self.peers.sum_gradients(gradients)
        torch._foreach_mul_(gradients, 1.0 / (report.targets * loss_scale))
        norm = float(torch.nn.utils.get_total_norm(gradients))
        return StepReport(report.loss, report.targets, report.tokens, report.scalars, self.peers.from_main(norm))

    def accumulate(self, batches: Iterable[Batch], step: int, loss_scale: float = 1.0) -> Sums:
        """Add up loss_scale times the gradient of each micro-batch's summed loss, on this rank."""
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        scalars: dict[str, Tensor] = {}
        sums, row = Sums(), self.first_row
        for batch in batches:
            torch.manual_seed(micro_batch_seed(self.runtime.seed, step, row))
            row += batch.ids.shape[0]
            sums.tokens += batch.num_tokens
            batch = batch.to(self.device)
            with autocast(self.runtime.precision, self.device):
                report = self.objective.loss(self.model, batch)
            add_scalars(scalars, report.scalars, loss)
            if report.count == 0:
                continue
            sums.targets += report.count
            loss += report.sum.detach()
            (report.sum * loss_scale if loss_scale != 1.0 else report.sum).backward()  # type: ignore[no-untyped-call]
        sums.loss = float(loss)
        if scalars:
            sums.scalars = {name: float(value) for name, value in scalars.items()}
        return sums

    def _over_ranks(self, sums: Sums) -> StepReport:
        names = tuple(sorted(sums.scalars or ()))
        if self.scalar_names is None and (sums.scalars is not None or not self.peers.alone):
            self.peers.check_equal("the names of the objective's scalars", digest_of_names(names))
            self.scalar_names = names
        names = self.scalar_names or ()
        given = sums.scalars or {}
        values = self.peers.sum([sums.loss, sums.targets, sums.tokens, *(given.get(name, 0.0) for name in names)])
        targets = int(values[1])
        means = [value / targets if targets else math.nan for value in (values[0], *values[3:])]
        return StepReport(means[0], targets, int(values[2]), dict(zip(names, means[1:], strict=True)), 0.0)


def add_scalars(into: dict[str, Tensor], scalars: Mapping[str, float | Tensor], like: Tensor) -> None:
    """Add a report's scalars to running sums in fp64, on the device of `like`, without waiting for the device."""
    for name, value in scalars.items():
        addend = value.detach().to(like) if isinstance(value, Tensor) else like.new_tensor(value)
        into[name] = into[name] + addend if name in into else addend


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient; zero where this step's loss did not reach it (perhaps another rank's did)."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
