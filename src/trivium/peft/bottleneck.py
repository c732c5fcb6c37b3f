"""Adapters: narrow networks of two layers in the blocks of a frozen model.

a(x) = scale * up(activation(down(x))), from D to m and back. Houlsby et al. (2019): y = f(x) + a(f(x)) for what
attention and MLP write; Pfeiffer et al. (2021): the same after the MLP only; He et al. (2022), `parallel`:
y = MLP(x) + a(x). In the decoder of an encoder-decoder the self-attention has one, the attention to the source none.

Departures: `up` is 0 at first (in the papers small, or 0), so a fresh adapter changes nothing; an adapter adds to the
sublayer's output before any norm of it, without a norm of its own. Invariants the tests check: nothing changes at
first, to the bit; the counts of `planner/peft_counts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.transformer import Block
from trivium.peft.settings import Activation, AdapterSettings
from trivium.peft.wrapped import Part, drawn_uniform, in_own_type

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

# Where in a block each method adds to what a module gives, by the module's name.
PLACES = {"houlsby": ("attention.output", "mlp.down"), "pfeiffer": ("mlp.down",), "parallel": ("mlp",)}


class Bottleneck(Part):
    """The network, which reads what a module gives."""

    def __init__(self, width: int, settings: AdapterSettings, seed: int, name: str) -> None:
        super().__init__()
        inner = settings.bottleneck
        # Named so that they are not taken for the layers of the MLP that `parallel` stands beside.
        self.adapter_down, self.adapter_up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.adapter_down.weight = drawn_uniform(inner, width, seed, f"{name}.adapter_down.weight")
        for zero in (self.adapter_down.bias, self.adapter_up.weight, self.adapter_up.bias):
            nn.init.zeros_(zero)
        self.activation, self.scale = settings.activation, settings.scale

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) -> (..., D)."""
        y: Tensor = base(x)
        return (y + self.added(y)).to(y.dtype)

    def added(self, x: Tensor) -> Tensor:
        """a(x), (..., D)."""
        inner = ACTIVATIONS[self.activation](self.adapter_down(in_own_type(x, self.adapter_down.weight)))
        return self.scale * self.adapter_up(inner)  # type: ignore[no-any-return]


class ParallelBottleneck(Bottleneck):
    """The network, which reads what the module reads."""

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = base(x)
        return (y + self.added(x)).to(y.dtype)


def parts(modules: Mapping[str, nn.Module], settings: AdapterSettings, width: int, seed: int) -> dict[str, Part]:
    """The parts of a new adapter for the `modules` of a model of this width, by the names of the modules."""
    kind = ParallelBottleneck if settings.method == "parallel" else Bottleneck
    blocks = [name for name, module in modules.items() if isinstance(module, Block)]
    names = [f"{block}.{place}" for block in blocks for place in PLACES[settings.method]]
    return {name: cast(Part, kind(width, settings, seed, name)) for name in names}
