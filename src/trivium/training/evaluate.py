"""The loss on held-out data, by running sums: logits are never kept, the model and the generators are left as found.

Dropout is off, and what an objective draws at random (which tokens to mask) it draws alike at every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trivium.data.batch import Batch
from trivium.runtime import Runtime
from trivium.training.distributed import Peers, digest_of_names
from trivium.training.gradients import add_scalars, micro_batch_seed
from trivium.training.objective import Objective
from trivium.training.precision import autocast


class EvaluationInterrupted(Exception):
    """The evaluation was asked to end early; the loop will repeat it."""


@dataclass(frozen=True)
class Evaluation:
    """Sums over all targets of the held-out data, on all ranks."""

    loss_sum: float
    """In nats."""
    targets: int
    tokens: int
    scalars: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per target, in nats; NaN without targets."""
        return self.loss_sum / self.targets if self.targets else float("nan")


def evaluate_loss(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    runtime: Runtime,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """The summed loss over `batches` (this rank's share), added up over the ranks.

    Raises EvaluationInterrupted between two batches once `should_stop()` is true (one process only: ranks would part).
    """
    peers, device = Peers(runtime), runtime.torch_device()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    targets = tokens = 0
    scalars: dict[str, Tensor] = {}
    modes = {module: module.training for module in model.modules()}
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), torch.no_grad():
        model.eval()
        try:
            for number, batch in enumerate(batches):
                if peers.alone and should_stop():
                    raise EvaluationInterrupted
                torch.manual_seed(micro_batch_seed(runtime.seed, -1, number))
                tokens += batch.num_tokens
                with autocast(runtime.precision, device):
                    report = objective.loss(model, batch.to(device))
                loss += report.sum.detach()
                targets += report.count
                add_scalars(scalars, report.scalars, loss)
        finally:
            for module, training in modes.items():
                module.training = training
    names = sorted(scalars)
    peers.check_equal("the names of the objective's scalars", digest_of_names(names))
    values = peers.sum([float(loss), targets, tokens, *(float(scalars[name]) for name in names)])
    return Evaluation(values[0], int(values[1]), int(values[2]), dict(zip(names, values[3:], strict=True)))
