"""(IA)^3: learned factors on keys, values and the inner layer of the MLP (Liu et al., 2022, sec. 3.3).

y = l * (W x + b) where a layer's outputs are scaled, y = W (l * x) + b where its inputs are; factors are 1 at first.
The MLP's inner elements are scaled where its last layer reads them. Invariants the tests check: those of `lora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.peft.settings import IA3Settings
from trivium.peft.targets import linear_targets
from trivium.peft.wrapped import Matrix, Part


class ScaledOutputs(Part):
    """A factor for each output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(width))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = base(x)
        return (y * self.factors).to(y.dtype)

    def merged(self, matrix: Matrix) -> Matrix:
        """l W and l b."""
        weight, bias = matrix
        factors = self.factors.to(weight.dtype)
        return weight * factors[:, None], None if bias is None else bias * factors


class ScaledInputs(ScaledOutputs):
    """A factor for each input."""

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return base((x * self.factors).to(x.dtype))  # type: ignore[no-any-return]

    def merged(self, matrix: Matrix) -> Matrix:
        """W l, each column by its own factor."""
        weight, bias = matrix
        return weight * self.factors.to(weight.dtype), bias


def parts(modules: Mapping[str, nn.Module], model: nn.Module, settings: IA3Settings) -> dict[str, Part]:
    """The parts of a new adapter for the `modules` of a model, by the names of the layers they are for."""
    outputs = linear_targets(model, settings.scaled_outputs, "scaled_outputs")
    inputs = linear_targets(model, settings.scaled_inputs, "scaled_inputs")
    if both := sorted(set(outputs) & set(inputs)):
        raise UserError(f"scaled_inputs: {both[0]} is also in scaled_outputs: scale one side of a layer")
    made: dict[str, Part] = {name: ScaledOutputs(modules[name].out_features) for name in outputs}  # type: ignore[arg-type]
    return made | {name: ScaledInputs(modules[name].in_features) for name in inputs}  # type: ignore[arg-type]
