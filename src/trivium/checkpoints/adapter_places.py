"""Where an adapter's tensors belong in a published model: its modules, and which of our layers each of them holds.

All of it follows from the family's table of tensors (`families/family.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trivium.checkpoints.layouts import join, split
from trivium.errors import UserError
from trivium.families.family import Family, Layout, Weight
from trivium.families.naming import LAYOUT_OF_BIAS
from trivium.families.reading import shown
from trivium.models.build import build_model
from trivium.models.config import ModelConfig


class Place(NamedTuple):
    """One linear layer of the published model, and those of ours it holds."""

    published: str
    ours: tuple[str, ...]
    rows: Layout
    """How the outputs of ours lie in it; inputs always lie as ours do."""
    inputs: int
    outputs: tuple[int, ...]
    """Of each of ours."""
    transposed: bool
    """Whether its matrix is stored as (in, out)."""

    def joined(self, parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
        """What belongs to the outputs of each of ours, (out, ...), as one."""
        return join(self._weight(), parts, config)

    def parted(self, whole: Tensor, config: ModelConfig) -> list[Tensor]:
        """The inverse."""
        return split(self._weight(), whole, config)

    def _weight(self) -> Weight:
        return Weight(self.published, tuple(f"{name}.weight" for name in self.ours), self.rows)


def published_weights(family: Family, config: ModelConfig) -> list[Weight]:
    """All tensors by the names that they have in the class of `transformers` for this head."""
    bare = family.base_prefix if config.head == "none" else ""
    return [weight._replace(published=weight.published.removeprefix(bare)) for weight in family.weights(config)]


def linear_places(family: Family, config: ModelConfig) -> dict[str, Place]:
    """The linear layers of the published model by their names in it."""
    with torch.device("meta"):
        modules = dict(build_model(config).named_modules())
    found: dict[str, Place] = {}
    for weight in published_weights(family, config):
        ours = tuple(name.removesuffix(".weight") for name in weight.ours)
        layers = [modules.get(name) for name in ours]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if weight.published.endswith(".weight") and len(linear) == len(ours):
            name = weight.published.removesuffix(".weight")
            rows = LAYOUT_OF_BIAS.get(weight.layout, weight.layout)
            outputs = tuple(layer.out_features for layer in linear)
            found[name] = Place(name, ours, rows, linear[0].in_features, outputs, rows != weight.layout)
    return found


def shortest_names(names: Iterable[str], family: Family, config: ModelConfig) -> list[str]:
    """The last parts of modules' names where these mean no other module, else the names as they are."""
    wanted = list(names)
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in wanted))
    known = {module_of(weight.published) for weight in published_weights(family, config)}
    meant = {name for name in known if name.rpartition(".")[2] in ends}
    return ends if meant == set(wanted) and not any(end.isdigit() for end in ends) else wanted


def module_of(published: str) -> str:
    """The module that a published tensor belongs to."""
    return published.rpartition(".")[0]


def expect(tensor: Tensor, shape: tuple[int, ...], name: str, where: str) -> None:
    """UserError for a tensor of another shape."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: {shown(name)} is {tuple(tensor.shape)} and must be {shape}")


def number(values: Mapping[str, Any], key: str, where: str) -> float:
    """A number above 0 that a config must state."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{where}: {key} is {shown(value)}: it must be a number above 0")
    return value
