"""Gemma 3, text (Gemma team, 2025): Gemma 2 with normalised queries and keys instead of bounded scores.

Five of six layers are windowed and have a rotary base of their own; the scaling of the larger models stretches the
others only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, HeadForm
from trivium.families.gemma2 import FIELDS as GEMMA2_FIELDS
from trivium.families.gemma2 import SHAPE, read_cap, read_gemma, write_gemma
from trivium.families.llama import copies, is_of_another_head, is_redundant, llama_like_weights, with_defaults
from trivium.families.reading import shown, stated
from trivium.families.rope import DEFAULT_THETA, GLOBAL_THETA, read_rope_by_layer, write_rope_by_layer
from trivium.models.config import Head, ModelConfig

FIELDS = with_defaults(GEMMA2_FIELDS, {"vocab_size": 262_208, "max_position_embeddings": 131_072})
USUAL_WINDOWED_OF = 6
HEADS: dict[Head, HeadForm] = {
    "lm": HeadForm("Gemma3ForCausalLM"),
    "classification": HeadForm("Gemma3TextForSequenceClassification", {"pooling": "last"}),
    "scalar": HeadForm("Gemma3TextForSequenceClassification", {"pooling": "last"}),
    "none": HeadForm("Gemma3TextModel"),
}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type gemma3_text."""
    if read_cap(values, "attn_logit_softcapping", None, origin):
        raise UserError(f"{origin}: attn_logit_softcapping must be null: transformers does not use it in a Gemma 3")
    windowed_of = stated(values, "sliding_window_pattern", USUAL_WINDOWED_OF)
    if not isinstance(windowed_of, int) or windowed_of < 1:
        raise UserError(f"{origin}: sliding_window_pattern is {shown(windowed_of)}: give a number above 0")
    own = {
        **read_rope_by_layer(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
        "qk_norm": "head",
    }
    return read_gemma(values, origin, FIELDS, HEADS, own, windowed_of=windowed_of, logit_cap=None)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_gemma(config, FIELDS, logit_cap=None),
        **write_rope_by_layer(config),
        "attn_logit_softcapping": None,
    }


GEMMA3 = Family(
    model_type="gemma3_text",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=llama_like_weights,
    shape={**SHAPE, "qk_norm": "head", "rope_theta": GLOBAL_THETA, "local_rope_theta": DEFAULT_THETA},
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
