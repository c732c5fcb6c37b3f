"""mBART (Liu et al., 2020): BART with a norm before each sublayer and one more after each stack.

What begins a target depends on the language, so that many a config.json does not say it: then it is the
beginning-of-text token, as in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.families.bart import FIELDS as BART_FIELDS
from trivium.families.bart import FRESH, IDS, copies, heads_of, is_optional, read_two_stacks, weights, write_two_stacks
from trivium.families.bart import IMPLIED as BART_IMPLIED
from trivium.families.family import Family
from trivium.families.reading import Fields, stated
from trivium.models.config import ModelConfig

FIELDS: Fields = {**BART_FIELDS, "decoder_start_token_id": ("decoder_start_id", None)}
HEADS = heads_of("MBart")
IMPLIED: dict[str, Any] = {**BART_IMPLIED, "norm_placement": "pre"}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type mbart."""
    start = stated(values, "decoder_start_token_id", stated(values, "bos_token_id", IDS["bos_token_id"]))
    return read_two_stacks({**values, "decoder_start_token_id": start}, origin, FIELDS, HEADS, IMPLIED)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return write_two_stacks(config, FIELDS)


MBART = Family(
    model_type="mbart",
    kind="encoder-decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**IMPLIED, **FRESH},
    base_prefix="model.",
    copies=copies,
    is_optional=is_optional,
    ids=IDS,
)
