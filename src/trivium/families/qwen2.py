"""Qwen 2 and 2.5 (Qwen team, 2024): a Llama with biases on query, key and value; its upper layers may be windowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.layer_types import read_layer_types, write_layer_types
from trivium.families.llama import (
    FIELDS as LLAMA_FIELDS,
)
from trivium.families.llama import (
    LLAMA,
    copies,
    is_of_another_head,
    is_redundant,
    read_llama_like,
    weights,
    with_defaults,
)
from trivium.families.naming import decoder_heads
from trivium.families.reading import (
    build,
    read_activation,
    read_choice,
    shown,
    stated,
    write_activation,
    write_fields,
    write_head,
)
from trivium.families.rope import read_rope, write_rope
from trivium.models.config import ModelConfig

FIELDS = with_defaults(
    LLAMA_FIELDS,
    {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    },
)
USUAL_WINDOW = 4096
USUAL_FIRST_WINDOWED_LAYER = 28
HEADS = decoder_heads("Qwen2")


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type qwen2."""
    fields = read_llama_like(values, origin, FIELDS, HEADS)
    return build(
        {
            **fields,
            **read_rope(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
            **read_upper_windows(values, fields["layers"], origin),
            "activation": read_activation(values, "hidden_act", "silu", origin),
            "bias": "qkv",
        },
        origin,
    )


def read_upper_windows(values: Mapping[str, Any], layers: object, origin: str) -> dict[str, Any]:
    """`sliding_window` and `full_attention_layers`: layers from `max_window_layers` on are windowed."""
    used = read_choice(values, "use_sliding_window", False, {True: True, False: False}, origin)
    window = values.get("sliding_window", USUAL_WINDOW) if used else None
    first = stated(values, "max_window_layers", USUAL_FIRST_WINDOWED_LAYER)
    if not isinstance(first, int):
        raise UserError(f"{origin}: max_window_layers is {shown(first)}: give a number")
    return read_layer_types(values, layers, window, lambda layer: window is not None and layer >= first, origin)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_rope(config),
        **write_head(config),
        **write_upper_windows(config),
        "hidden_act": write_activation(config.activation),
    }


def write_upper_windows(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_upper_windows`; `layer_types` goes before `max_window_layers`, which older code reads."""
    windowed = [layer for layer in range(config.layers) if config.is_windowed(layer)]
    return {
        **write_layer_types(config),
        "use_sliding_window": bool(windowed),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": min(windowed, default=config.layers),
    }


QWEN2 = Family(
    model_type="qwen2",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**LLAMA.shape, "bias": "qkv"},
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
