"""Marian (Junczys-Dowmunt et al., 2018), which is the Transformer of 2017 (Vaswani et al.): fixed sines, post-norm.

A fresh model of this `shape` is the original: sqrt(D) times the embeddings, relu, one table of embeddings for source,
target and output. Its base model is `ModelConfig(vocab_size=..., width=512, layers=6, heads=8, mlp_width=2048,
**MARIAN.shape)`. Beyond the paper there is the bias of the token scores (`final_logits_bias`); sines and cosines do not
alternate (`models/positions.py`).

Models with a vocabulary for the source and another for the target are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.bart import FIELDS as BART_FIELDS
from trivium.families.bart import FRESH, SQRT_WIDTH, TWO_STACKS, copies, read_two_stacks, weights, write_two_stacks
from trivium.families.family import Family, HeadForm
from trivium.families.reading import Fields, read_choice, shown, stated
from trivium.models.config import Head, ModelConfig

FIELDS: Fields = {
    **BART_FIELDS,
    "vocab_size": ("vocab_size", 58_101),
    "decoder_start_token_id": ("decoder_start_id", 58_100),
}
HEADS: dict[Head, HeadForm] = {
    "lm": HeadForm("MarianMTModel", {"head_bias": True}),
    "none": HeadForm("MarianModel"),
}
# What a Marian has without saying so.
IMPLIED: dict[str, Any] = {**TWO_STACKS, "norm_placement": "post", "positions": "sinusoidal"}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type marian."""
    read_choice(values, "share_encoder_decoder_embeddings", True, {True: True}, origin)
    source = stated(values, "vocab_size", FIELDS["vocab_size"][1])
    target = stated(values, "decoder_vocab_size", source)
    if target != source:
        raise UserError(
            f"{origin}: vocab_size is {shown(source)} and decoder_vocab_size is {shown(target)}: they must be equal"
        )
    return read_two_stacks(values, origin, FIELDS, HEADS, IMPLIED)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_two_stacks(config, FIELDS),
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
    }


MARIAN = Family(
    model_type="marian",
    kind="encoder-decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**IMPLIED, **FRESH, "activation": "relu", "embedding_scale": SQRT_WIDTH},
    base_prefix="model.",
    copies=copies,
    is_redundant=lambda name: name.endswith(".embed_positions.weight"),
    is_optional=lambda name: name.startswith(("final_logits_bias", "lm_head.")),
    # The published vocabularies end with a padding token, whose id is therefore another in each.
    ids={"eos_token_id": 0, "pad_token_id": 0},
)
