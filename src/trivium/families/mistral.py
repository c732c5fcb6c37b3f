"""Mistral (Jiang et al., 2023): a Llama without biases; all of its layers see a sliding window, or none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.llama import (
    FIELDS as LLAMA_FIELDS,
)
from trivium.families.llama import (
    LLAMA,
    copies,
    is_of_another_head,
    is_redundant,
    llama_like_weights,
    read_llama_like,
    with_defaults,
)
from trivium.families.naming import decoder_heads
from trivium.families.reading import build, read_activation, shown, write_activation, write_fields, write_head
from trivium.families.rope import read_rope, write_rope
from trivium.models.config import ModelConfig

FIELDS = with_defaults(
    LLAMA_FIELDS, {"intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
)
USUAL_WINDOW = 4096
HEADS = decoder_heads("Mistral")


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type mistral."""
    if values.get("layer_types") is not None:
        raise UserError(
            f"{origin}: layer_types is set: the layers of a mistral are all alike, and its own code ignores it"
        )
    window = values.get("sliding_window", USUAL_WINDOW)
    if window is not None and (not isinstance(window, int) or window < 1):
        raise UserError(f"{origin}: sliding_window is {shown(window)}: give a number above 0, or null for none")
    return build(
        {
            **read_llama_like(values, origin, FIELDS, HEADS),
            **read_rope(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
            "activation": read_activation(values, "hidden_act", "silu", origin),
            "sliding_window": window or 0,
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_rope(config),
        **write_head(config),
        "hidden_act": write_activation(config.activation),
        "sliding_window": config.sliding_window or None,
    }


MISTRAL = Family(
    model_type="mistral",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=llama_like_weights,
    shape=LLAMA.shape,
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
