"""DistilBERT (Sanh et al., 2019): half a BERT, without kinds of segment and without pooler.

- Its table of positions may have been filled with sines (`sinusoidal_pos_embds`): the file holds it in either case, and
  what the file holds counts.
- The epsilon of its norms is 1e-12 whatever config.json says.
- In training, `dropout` is here that of every sublayer and of the heads; the published code drops nothing behind
  attention, and has rates of its own for two of the heads.

Invariant its test checks: results and gradients of all heads are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.families.encoder_reading import POST_NORM, HeadNames, encoder_heads, head_weights, refuse_variants
from trivium.families.family import Family, Weight
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

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 30_522),
    "max_position_embeddings": ("max_positions", 512),
    "dim": ("width", 768),
    "hidden_dim": ("mlp_width", 3072),
    "n_layers": ("layers", 6),
    "n_heads": ("heads", 12),
    "initializer_range": ("init_std", 0.02),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "tie_word_embeddings": ("tied_embeddings", True),
}
IMPLIED = {**POST_NORM, "norm_eps": 1e-12}
OF_A_TEXT = {"head_hidden": "relu"}
HEADS = encoder_heads(
    "DistilBert",
    {"lm": {"head_hidden": "activation_norm"}, "classification": OF_A_TEXT, "scalar": OF_A_TEXT},
)
NAMES: dict[Head, HeadNames] = {
    "lm": HeadNames("vocab_projector", "vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    "classification": HeadNames("classifier", "pre_classifier"),
    "scalar": HeadNames("classifier", "pre_classifier"),
    "token_classification": HeadNames("classifier"),
    "span": HeadNames("qa_outputs"),
    "none": HeadNames(),
}
MODULES = (
    Weight("attention.q_lin", ("attention.query",)),
    Weight("attention.k_lin", ("attention.key",)),
    Weight("attention.v_lin", ("attention.value",)),
    Weight("attention.out_lin", ("attention.output",)),
    Weight("sa_layer_norm", ("attention_norm",)),
    Weight("ffn.lin1", ("mlp.up",)),
    Weight("ffn.lin2", ("mlp.down",)),
    Weight("output_layer_norm", ("mlp_norm",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type distilbert."""
    refuse_foreign(values, origin)
    refuse_variants(values, origin)
    return build(
        {
            **IMPLIED,
            **read_fields(values, FIELDS),
            **read_head(values, HEADS, "lm", origin),
            "activation": read_activation(values, "activation", "gelu", origin),
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_head(config),
        "activation": write_activation(config.activation),
        "sinusoidal_pos_embds": False,
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a DistilBERT."""
    yield Weight("distilbert.embeddings.word_embeddings.weight", ("embedding.weight",))
    yield Weight("distilbert.embeddings.position_embeddings.weight", ("stack.positions.weight",))
    yield from module_weights(config, "distilbert.embeddings.LayerNorm", "embedding_norm")
    yield from block_weights(config, "distilbert.transformer.layer", MODULES)
    yield from head_weights(config, NAMES[config.head])


def is_optional(published: str) -> bool:
    """Heads."""
    return published.startswith(("vocab_", "pre_classifier.", "classifier.", "qa_outputs."))


DISTILBERT = Family(
    model_type="distilbert",
    kind="encoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**IMPLIED, "activation": "gelu", **HEADS["lm"].fields},
    base_prefix="distilbert.",
    copies=lambda config: tied_copy(config, "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    is_redundant=lambda name: name.endswith("embeddings.position_ids"),
    is_optional=is_optional,
    ids={"pad_token_id": 0},
)
