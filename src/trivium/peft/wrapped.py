"""A module with what adapters add beside it, and a way back.

`Wrapped` stands in the place of a module and keeps it, untouched, as `base`. Each adapter that reaches the module has a
`Part` there; the active adapter's part computes with the base, and with none active the base is called as it is. A
linear layer stays one (`models/layers.py`), so what reads the model need not know.

Invariant the tests check: with no part active the outputs are the base's, to the bit; unwrapped, it is the same module.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

Matrix = tuple[Tensor, Tensor | None]
"""The weight (out, in) and the bias (out,) of a linear layer."""


class Part(nn.Module):
    """What one adapter adds at one module."""

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the module gives for `x` (..., in), with this part in it: (..., out)."""
        raise NotImplementedError

    def merged(self, matrix: Matrix) -> Matrix:
        """The linear layer that computes the same without this part, in the type of `matrix`; differentiable."""
        raise NotImplementedError


class Wrapped(nn.Module):
    """A module and the parts that adapters have there, by the adapters' names."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.parts = nn.ModuleDict()
        self.active: str | None = None
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.active is None or self.active not in self.parts:
            return self.base(x)  # type: ignore[no-any-return]
        return self.parts[self.active](self.base, x)  # type: ignore[no-any-return]

    @property
    def in_features(self) -> int:
        """The base's."""
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        """The base's."""
        return self.base.out_features  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The matrix (out, in) that the active part makes of the base's, anew each time; dropout has no part in it."""
        return self._matrix()[0]

    @property
    def bias(self) -> Tensor | None:
        """(out,), likewise."""
        return self._matrix()[1]

    def _matrix(self) -> Matrix:
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        if self.active is None or self.active not in self.parts:
            return weight, bias
        wide = torch.promote_types(weight.dtype, torch.float32)
        part = self.parts[self.active]
        assert isinstance(part, Part)
        new, new_bias = part.merged((weight.to(wide), None if bias is None else bias.to(wide)))
        return new.to(weight.dtype), None if new_bias is None else new_bias.to(weight.dtype)


def in_own_type(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the type of the weight it will meet; under autocast, which decides, as it is."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x
    return x.to(weight.dtype)


def drawn_uniform(outputs: int, inputs: int, seed: int, name: str) -> nn.Parameter:
    """A matrix (outputs, inputs) in fp32, uniform in +-1/sqrt(inputs): He's rule with a = sqrt(5), as `peft` draws.

    The generator is seeded by (seed, name), as that of a model's own weights: order and device have no influence.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
