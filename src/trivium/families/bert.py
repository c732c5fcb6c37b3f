"""BERT (Devlin et al., 2019), and sentence encoders in its format such as MiniLM.

Learned positions, two kinds of segment, normed embeddings, norms behind each sublayer. Its pooler (dense and tanh on
the first hidden state) is here the layer before a head for a text; the bare model has it too, for whoever wants it.

- A file of the pretrained model (`BertForPreTraining`) is read without its next-sentence head.
- Untied token scores have their bias in `cls.predictions.decoder.bias`, as `transformers` 5 computes them;
  `cls.predictions.bias` is then in the file and without effect.
- Padding on the left does not move positions here; in `transformers` it does.

Invariant its test checks: results and gradients of all heads are those of `transformers`, also for MiniLM's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.encoder_reading import POST_NORM, HeadNames, encoder_heads, head_weights, refuse_variants
from trivium.families.family import Family, HeadForm, Weight
from trivium.families.naming import block_weights, module_weights, tied_copy
from trivium.families.reading import (
    Fields,
    build,
    read_activation,
    read_fields,
    read_head,
    refuse_foreign,
    write_activation,
    write_fields,
    write_head,
)
from trivium.models.config import Head, ModelConfig

# What BERT and RoBERTa state in the same words; positions each counts in its own way.
COMMON_FIELDS: Fields = {
    "hidden_size": ("width", 768),
    "intermediate_size": ("mlp_width", 3072),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "type_vocab_size": ("segment_types", 2),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "initializer_range": ("init_std", 0.02),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "tie_word_embeddings": ("tied_embeddings", True),
}
FIELDS: Fields = {
    "vocab_size": ("vocab_size", 30_522),
    "max_position_embeddings": ("max_positions", 512),
    **COMMON_FIELDS,
}
POOLER = {"head_hidden": "tanh"}
HEADS = encoder_heads(
    "Bert",
    {"lm": {"head_hidden": "activation_norm"}, "classification": POOLER, "scalar": POOLER, "none": POOLER},
)
HEADS["lm"] = HEADS["lm"]._replace(aliases=("BertForPreTraining",))
OF_A_TEXT = HeadNames("classifier", "bert.pooler.dense")
NAMES: dict[Head, HeadNames] = {
    "lm": HeadNames(
        "cls.predictions.decoder",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ),
    "classification": OF_A_TEXT,
    "scalar": OF_A_TEXT,
    "token_classification": HeadNames("classifier"),
    "span": HeadNames("qa_outputs"),
    "none": OF_A_TEXT,
}
MODULES = (
    Weight("attention.self.query", ("attention.query",)),
    Weight("attention.self.key", ("attention.key",)),
    Weight("attention.self.value", ("attention.value",)),
    Weight("attention.output.dense", ("attention.output",)),
    Weight("attention.output.LayerNorm", ("attention_norm",)),
    Weight("intermediate.dense", ("mlp.up",)),
    Weight("output.dense", ("mlp.down",)),
    Weight("output.LayerNorm", ("mlp_norm",)),
)


def read_bert_like(
    values: Mapping[str, Any], origin: str, fields: Fields, heads: Mapping[Head, HeadForm]
) -> dict[str, Any]:
    """Our fields for a config.json in BERT's words."""
    refuse_foreign(values, origin)
    refuse_variants(values, origin)
    found = read_fields(values, fields)
    if found["segment_types"] == 0:
        raise UserError(f"{origin}: type_vocab_size is 0: it must be at least 1")
    return {
        **POST_NORM,
        **found,
        **read_head(values, heads, "lm", origin),
        "activation": read_activation(values, "hidden_act", "gelu", origin),
    }


def write_bert_like(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    """The inverse of `read_bert_like`."""
    return {
        **write_fields(config, fields),
        **write_head(config),
        "hidden_act": write_activation(config.activation),
        "position_embedding_type": "absolute",
    }


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type bert."""
    return build(read_bert_like(values, origin, FIELDS, HEADS), origin)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return write_bert_like(config, FIELDS)


def trunk_weights(config: ModelConfig, base: str) -> Iterator[Weight]:
    """All tensors but those of the head; `base` is the name of the trunk."""
    yield Weight(f"{base}.embeddings.word_embeddings.weight", ("embedding.weight",))
    yield Weight(f"{base}.embeddings.position_embeddings.weight", ("stack.positions.weight",))
    yield Weight(f"{base}.embeddings.token_type_embeddings.weight", ("stack.types.weight",))
    yield from module_weights(config, f"{base}.embeddings.LayerNorm", "embedding_norm")
    yield from block_weights(config, f"{base}.encoder.layer", MODULES)


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a BERT."""
    yield from trunk_weights(config, "bert")
    yield from head_weights(config, NAMES[config.head])


def copies(config: ModelConfig) -> dict[str, str]:
    """A file may hold tied token scores once more, their bias too."""
    tied = tied_copy(config, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    return tied and {**tied, "cls.predictions.decoder.bias": "cls.predictions.bias"}


def is_redundant(published: str) -> bool:
    """Early files also hold the numbers of the positions; of untied token scores one of two biases is idle."""
    return published.endswith("embeddings.position_ids") or published == "cls.predictions.bias"


def is_optional(published: str) -> bool:
    """Heads, and the pooler, which pretraining leaves behind."""
    return published.startswith(("cls.", "bert.pooler.", "classifier.", "qa_outputs."))


BERT = Family(
    model_type="bert",
    kind="encoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**POST_NORM, "norm_eps": 1e-12, "segment_types": 2, "activation": "gelu", **HEADS["lm"].fields},
    base_prefix="bert.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_optional,
    ids={"pad_token_id": 0},
)
