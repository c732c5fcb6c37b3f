"""Gemma 2 (Gemma team, 2024): norms around each sublayer, bounded scores and logits, every other layer windowed.

RMSNorm weights are stored as their distance from 1, token embeddings are multiplied by sqrt(D), and scores are scaled
by 1 / sqrt(query_pre_attn_scalar). What Gemma 3 shares with it is here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, HeadForm
from trivium.families.layer_types import read_layer_types, write_layer_types
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
    with_even_heads,
)
from trivium.families.naming import decoder_heads
from trivium.families.reading import (
    Fields,
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
from trivium.models.config import Head, ModelConfig

FIELDS = with_defaults(
    LLAMA_FIELDS,
    {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
)
USUAL_WINDOW = 4096
USUAL_ATTENTION_CAP = 50.0
USUAL_LOGIT_CAP = 30.0
# What scores are divided by the root of, and caps: no model comes near.
LARGEST_SCALE = 1e12
SHAPE = {
    **LLAMA.shape,
    "norm": "rmsnorm_around_one",
    "norm_placement": "sandwich",
    "activation": "gelu_tanh",
    # 0: sqrt(D).
    "embedding_scale": 0.0,
}
HEADS = decoder_heads("Gemma2", without=("span",))


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type gemma2."""
    return read_gemma(
        values,
        origin,
        FIELDS,
        HEADS,
        {
            **read_rope(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
            "attention_softcap": read_cap(values, "attn_logit_softcapping", USUAL_ATTENTION_CAP, origin),
        },
        windowed_of=2,
        logit_cap=USUAL_LOGIT_CAP,
    )


def read_gemma(
    values: Mapping[str, Any],
    origin: str,
    fields: Fields,
    heads: Mapping[Head, HeadForm],
    own: Mapping[str, Any],
    *,
    windowed_of: int,
    logit_cap: float | None,
) -> ModelConfig:
    """Our config of a Gemma 2 or 3; `own`: fields that only one of them has.

    `windowed_of`: every how manieth layer sees everything; `logit_cap`: what a file without the key means.
    """
    read_choice(values, "use_bidirectional_attention", False, {False: False}, origin)
    found = read_llama_like(values, origin, fields, heads)
    window = values.get("sliding_window", USUAL_WINDOW)
    cap = read_cap(values, "final_logit_softcapping", logit_cap, origin)
    scalar = stated(values, "query_pre_attn_scalar", 256)
    if type(scalar) is not int or not 0 < scalar <= LARGEST_SCALE:
        raise UserError(f"{origin}: query_pre_attn_scalar is {shown(scalar)}: give a whole number above 0")
    config = build(
        {
            **found,
            **read_layer_types(values, found["layers"], window, lambda layer: bool((layer + 1) % windowed_of), origin),
            **SHAPE,
            "activation": read_activation(values, "hidden_activation", "gelu_pytorch_tanh", origin),
            "bias": read_choice(values, "attention_bias", False, {False: "none", True: "attention"}, origin),
            # 0: 1 / sqrt(N).
            "attention_scale": 0.0 if scalar == found["head_width"] else scalar**-0.5,
            "logit_softcap": cap if found["head"] == "lm" else 0.0,
            **own,
        },
        origin,
    )
    return with_even_heads(config, origin)


def read_cap(values: Mapping[str, Any], key: str, default: float | None, origin: str) -> float:
    """A bound of scores or logits; 0 for null, which means none also where leaving the key out means a number."""
    cap = values.get(key, default)
    if cap is not None and (not isinstance(cap, int | float) or not 0 < cap <= LARGEST_SCALE):
        raise UserError(f"{origin}: {key} is {shown(cap)}: give a number above 0, or null for none")
    return float(cap or 0.0)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_gemma(config, FIELDS, logit_cap=USUAL_LOGIT_CAP),
        **write_rope(config),
        "attn_logit_softcapping": config.attention_softcap or None,
    }


def write_gemma(config: ModelConfig, fields: Fields, *, logit_cap: float | None) -> dict[str, Any]:
    """What is written of Gemma 2 and 3 alike.

    There must be a window, even if no layer has one. `logit_cap` is what is written under a head that has no logits,
    so that the `lm` head finds it again.
    """
    cap = config.logit_softcap if config.head == "lm" else logit_cap
    scalar = round(config.attention_scale**-2) if config.attention_scale else config.head_width
    return {
        **write_fields(config, fields),
        **write_head(config),
        **write_layer_types(config),
        "hidden_activation": write_activation(config.activation),
        "attention_bias": config.bias == "attention",
        "query_pre_attn_scalar": scalar,
        "sliding_window": config.sliding_window or USUAL_WINDOW,
        "final_logit_softcapping": cap or None,
    }


GEMMA2 = Family(
    model_type="gemma2",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=llama_like_weights,
    shape={**SHAPE, "attention_softcap": USUAL_ATTENTION_CAP, "logit_softcap": USUAL_LOGIT_CAP},
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
