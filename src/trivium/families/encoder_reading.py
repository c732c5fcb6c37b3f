"""What the encoder families have in common: their heads, what their tensors are called, and options all refuse.

On the hidden states of an encoder stands at most a layer of the same width, a norm and a projection
(`models/heads.py`); which of the three there are is in the config, what they are called is a `HeadNames` for each head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trivium.errors import UserError
from trivium.families.family import HeadForm, Weight
from trivium.families.naming import module_tensors
from trivium.families.reading import shown
from trivium.models.config import Head, ModelConfig

# What the names of their classes in `transformers` end with.
CLASSES: dict[Head, str] = {
    "lm": "ForMaskedLM",
    "classification": "ForSequenceClassification",
    "scalar": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "none": "Model",
}
# BERT and what descends from it, without saying so: norms behind each sublayer, and a bias everywhere.
POST_NORM: dict[str, Any] = {
    "kind": "encoder",
    "norm": "layernorm",
    "norm_placement": "post",
    "positions": "learned",
    "mlp": "plain",
    "bias": "all",
    "embedding_norm": True,
}
# Options that make another model of it, with the only value (beside nothing at all) that does not.
ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
}


class HeadNames(NamedTuple):
    """What the tensors of one head are called, without ".weight" and ".bias"."""

    output: str = ""
    """The projection."""
    hidden: str = ""
    """The layer before it."""
    norm: str = ""
    """The norm between them."""
    tied_bias: str = ""
    """The bias of a projection that is the embedding table, with its ending."""


def encoder_heads(stem: str, fields: Mapping[Head, Mapping[str, Any]]) -> dict[Head, HeadForm]:
    """The heads of a family whose classes begin with `stem`; `fields` are theirs beside a projection with bias."""
    return {
        head: HeadForm(stem + name, {**({} if head == "none" else {"head_bias": True}), **fields.get(head, {})})
        for head, name in CLASSES.items()
    }


def head_weights(config: ModelConfig, names: HeadNames) -> Iterator[Weight]:
    """The tensors of the head."""
    if config.head_hidden != "none":
        yield from module_tensors(names.hidden, "head.hidden", bias=config.head_hidden_bias)
    if config.head_hidden == "activation_norm":
        yield from module_tensors(names.norm, "head.norm", bias=config.norm == "layernorm")
    if config.head == "lm" and config.tied_embeddings:
        if config.head_bias:
            yield Weight(names.tied_bias, ("head.bias",))
    elif config.head != "none":
        yield from module_tensors(names.output, "head.output", bias=config.head_bias)


def refuse_variants(values: Mapping[str, Any], origin: str) -> None:
    """UserError where config.json asks for a decoder, for cross-attention or for other positions."""
    for key, only in ONLY.items():
        if values.get(key) and values[key] != only:
            raise UserError(f"{origin}: {key} is {shown(values[key])}: only {shown(only)} is supported")
