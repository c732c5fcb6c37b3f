"""Windowed and full layers in config.json: `layer_types`, or a rule by which older files imply it.

Invariant its test checks: the layers that are windowed here are those that transformers' own config class names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.reading import shown
from trivium.models.config import ModelConfig

FULL, WINDOWED = "full_attention", "sliding_attention"
# A list of layers is made from the number in the file, so that this is bounded.
MOST_LAYERS = 100_000


def read_layer_types(
    values: Mapping[str, Any], layers: object, window: object, usual: Callable[[int], bool], origin: str
) -> dict[str, Any]:
    """Our fields `sliding_window` and `full_attention_layers`; left out where no layer is windowed.

    `layers` and `window` are the file's own values; `usual` says of a layer whether it is windowed where there is no
    `layer_types`.
    """
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise UserError(f"{origin}: num_hidden_layers is {shown(layers)}: give a number from 1 to {MOST_LAYERS}")
    types = values.get("layer_types")
    if types is None:
        types = [WINDOWED if usual(layer) else FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (FULL, WINDOWED) for kind in types):
        raise UserError(f"{origin}: layer_types is {shown(types)}: it must name {FULL} or {WINDOWED} for each layer")
    if WINDOWED not in types:
        return {}
    if not isinstance(window, int) or window < 1:
        raise UserError(f"{origin}: sliding_window is {shown(window)}, but layer_types has {WINDOWED}")
    full = tuple(layer for layer, kind in enumerate(types) if kind == FULL)
    return {"sliding_window": window, "full_attention_layers": full}


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """`layer_types` of a config."""
    return {"layer_types": [WINDOWED if config.is_windowed(layer) else FULL for layer in range(config.layers)]}
