"""RoBERTa (Liu et al., 2019): BERT with positions that begin behind the padding token's id, and heads of other names.

- The first rows of the table of positions, up to the one whose number is the padding token's id, are never read;
  `max_position_embeddings` counts them.
- `transformers` leaves padding tokens out when it counts positions, here padding is told by segments: the same, unless
  the padding token stands inside a text.
- Token scores always go through GELU, so that other activations are refused under an `lm` head.
- Untied token scores: see `bert.py`.

Invariant its test checks: results and gradients of all heads are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.bert import COMMON_FIELDS, POOLER, read_bert_like, trunk_weights, write_bert_like
from trivium.families.encoder_reading import POST_NORM, HeadNames, encoder_heads, head_weights
from trivium.families.family import Family, Weight
from trivium.families.naming import tied_copy
from trivium.families.reading import Fields, build, shown, stated
from trivium.models.config import Head, ModelConfig

FIELDS: Fields = {"vocab_size": ("vocab_size", 50_265), **COMMON_FIELDS}
POSITIONS = 512
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
HEADS = encoder_heads(
    "Roberta",
    {"lm": {"head_hidden": "activation_norm"}, "classification": POOLER, "scalar": POOLER, "none": POOLER},
)
OF_A_TEXT = HeadNames("classifier.out_proj", "classifier.dense")
NAMES: dict[Head, HeadNames] = {
    "lm": HeadNames("lm_head.decoder", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "classification": OF_A_TEXT,
    "scalar": OF_A_TEXT,
    "token_classification": HeadNames("classifier"),
    "span": HeadNames("qa_outputs"),
    "none": HeadNames(hidden="roberta.pooler.dense"),
}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type roberta."""
    fields = read_bert_like(values, origin, FIELDS, HEADS)
    padding, rows = (
        stated(values, "pad_token_id", IDS["pad_token_id"]),
        stated(values, "max_position_embeddings", POSITIONS),
    )
    if type(padding) is not int or type(rows) is not int or not 0 <= padding < rows - 1:
        raise UserError(
            f"{origin}: max_position_embeddings is {shown(rows)} and pad_token_id {shown(padding)}: the former counts "
            "the positions and, before them, one row for each id up to the padding token's"
        )
    if fields["head"] == "lm" and fields["activation"] != "gelu":
        raise UserError(f"{origin}: hidden_act is {shown(values['hidden_act'])}: with token scores it must be gelu")
    config = build({**fields, "position_offset": padding + 1, "max_positions": rows - padding - 1}, origin)
    if padding >= config.vocab_size:
        raise UserError(f"{origin}: pad_token_id={padding} is beyond vocab_size={config.vocab_size}")
    return config


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    offset = max(1, config.position_offset)
    return {
        **write_bert_like(config, FIELDS),
        "max_position_embeddings": config.max_positions + offset,
        "pad_token_id": offset - 1,
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a RoBERTa."""
    yield from trunk_weights(config, "roberta")
    yield from head_weights(config, NAMES[config.head])


def copies(config: ModelConfig) -> dict[str, str]:
    """A file may hold tied token scores once more, their bias too."""
    tied = tied_copy(config, "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")
    return tied and {**tied, "lm_head.decoder.bias": "lm_head.bias"}


def is_redundant(published: str) -> bool:
    """Early files also hold the numbers of the positions; of untied token scores one of two biases is idle."""
    return published.endswith("embeddings.position_ids") or published == "lm_head.bias"


def is_optional(published: str) -> bool:
    """Heads, and the pooler, which pretraining leaves behind."""
    return published.startswith(("lm_head.", "roberta.pooler.", "classifier.", "qa_outputs."))


ROBERTA = Family(
    model_type="roberta",
    kind="encoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={
        **POST_NORM,
        "norm_eps": 1e-5,
        "position_offset": IDS["pad_token_id"] + 1,
        "segment_types": 1,
        "activation": "gelu",
        **HEADS["lm"].fields,
    },
    base_prefix="roberta.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_optional,
    ids=IDS,
)
