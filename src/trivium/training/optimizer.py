"""AdamW (Loshchilov & Hutter, 2019) over a model's trainable parameters, with state that is named, not pickled.

Tensors with two or more dimensions decay: projections and embedding tables alike (an embedding that is also the output
projection should, and rows that are never seen lose nothing by it). Norm weights, biases and other vectors do not.
torch's fused kernel does the arithmetic. The state leaves as flat tensors under `mean/<parameter>` and
`square/<parameter>` and one count of updates, and comes back bit for bit.

Invariants its test checks: equal to the paper's update written out in fp64; state saved and loaded continues exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.training.settings import TrainingSettings

# How torch calls the two moments, and how we do.
_MOMENTS = {"exp_avg": "mean", "exp_avg_sq": "square"}
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name, each tensor once. UserError when nothing is.

    Trainable weights are held in fp32 (or fp64): in 16 bits a small update would round to nothing.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError("the model has no trainable parameter: every weight is frozen")
    for parameter in parameters.values():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return parameters


class AdamW:
    """The optimizer. Its moments exist from the start, so that a run that does not fit fails at once."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: TrainingSettings,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """`factors`: by how much the learning rate of some parameters is multiplied, by name."""
        self.parameters = dict(parameters)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for decays in (True, False):
            for name, parameter in self.parameters.items():
                if (parameter.ndim >= 2) == decays:
                    kind = (settings.weight_decay if decays else 0.0, (factors or {}).get(name, 1.0))
                    groups.setdefault(kind, []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": each, "weight_decay": decay, "factor": factor} for (decay, factor), each in groups.items()],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=all(p.device.type in _FUSED_DEVICES for p in self.parameters.values()),
        )
        for parameter in self.parameters.values():
            self._state(parameter).update(
                step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._optimizer.state[parameter]  # type: ignore[no-any-return]

    @property
    def updates(self) -> int:
        """How many updates were made (steps that were left out do not count)."""
        return int(self._state(next(iter(self.parameters.values())))["step"])

    def step(self, learning_rate: float) -> None:
        """Update every parameter by its gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._optimizer.step()

    def drop_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """The moments by name; with `updates` this is the whole state. Not copies."""
        return {
            f"{ours}/{name}": self._state(parameter)[torchs]
            for torchs, ours in _MOMENTS.items()
            for name, parameter in self.parameters.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a state that `state_tensors` and `updates` gave. UserError when it is another model's."""
        copy_by_name(self.state_tensors(), tensors, "optimizer state")
        for parameter in self.parameters.values():
            self._state(parameter)["step"].fill_(updates)


def copy_by_name(into: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy every tensor over its namesake. UserError when names, shapes or dtypes differ (nothing is copied then)."""
    for name in sorted(into.keys() | source.keys()):
        if name not in source or name not in into:
            where = "the checkpoint lacks" if name not in source else "the model lacks"
            raise UserError(f"{what}: {where} {name}; resume with the recipe the checkpoint was made by")
        mine, theirs = into[name], source[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise UserError(
                f"{what}: {name} is {theirs.dtype} {tuple(theirs.shape)} in the checkpoint and {mine.dtype} "
                f"{tuple(mine.shape)} in the model; resume with the recipe the checkpoint was made by"
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(source[name])
