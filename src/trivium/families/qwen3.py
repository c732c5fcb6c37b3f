"""Qwen 3, dense (Qwen team, 2025): a Llama whose queries and keys are normalised within each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.families.family import Family
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
from trivium.families.qwen2 import FIELDS as QWEN2_FIELDS
from trivium.families.qwen2 import read_upper_windows, write_upper_windows
from trivium.families.reading import build, read_activation, read_choice, write_activation, write_fields, write_head
from trivium.families.rope import read_rope, write_rope
from trivium.models.config import ModelConfig

FIELDS = with_defaults(QWEN2_FIELDS, {"head_dim": 128})
HEADS = decoder_heads("Qwen3")


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type qwen3."""
    fields = read_llama_like(values, origin, FIELDS, HEADS)
    return build(
        {
            **fields,
            **read_rope(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
            **read_upper_windows(values, fields["layers"], origin),
            "activation": read_activation(values, "hidden_act", "silu", origin),
            "bias": read_choice(values, "attention_bias", False, {False: "none", True: "attention"}, origin),
            "qk_norm": "head",
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_rope(config),
        **write_head(config),
        **write_upper_windows(config),
        "hidden_act": write_activation(config.activation),
        "attention_bias": config.bias == "attention",
    }


QWEN3 = Family(
    model_type="qwen3",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**LLAMA.shape, "qk_norm": "head"},
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
