"""BLOOM (BigScience, 2022): a bias by distance instead of positions (ALiBi), and a norm on the embeddings.

Query, key and value are stored as one tensor head by head; the MLP is four times as wide as the model. Nothing bounds
the length of a text: `seq_length`, where a file has it, is the length of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.families.family import Family, Weight
from trivium.families.gpt2 import under_main_names
from trivium.families.naming import (
    QUERY_KEY_VALUE,
    block_weights,
    decoder_heads,
    head_weights,
    module_weights,
    tied_copy,
)
from trivium.families.reading import (
    Fields,
    build,
    read_choice,
    read_fields,
    read_head,
    refuse_foreign,
    stated,
    write_fields,
    write_head,
)
from trivium.models.config import ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 250_880),
    "hidden_size": ("width", 64),
    "n_layer": ("layers", 2),
    "n_head": ("heads", 8),
    "seq_length": ("max_positions", 2048),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "initializer_range": ("init_std", 0.02),
    "tie_word_embeddings": ("tied_embeddings", True),
    "hidden_dropout": ("dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
}
# Other names of some keys, which count where both are there.
ALIASES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
HEADS = decoder_heads("Bloom")
SHAPE = {
    "norm": "layernorm",
    "norm_placement": "pre",
    "positions": "alibi",
    "embedding_norm": True,
    "mlp": "plain",
    "activation": "gelu_tanh",
    "bias": "all",
}
MODULES = (
    Weight("input_layernorm", ("attention_norm",)),
    Weight("self_attention.query_key_value", QUERY_KEY_VALUE, "stacked_by_head"),
    Weight("self_attention.dense", ("attention.output",)),
    Weight("post_attention_layernorm", ("mlp_norm",)),
    Weight("mlp.dense_h_to_4h", ("mlp.up",)),
    Weight("mlp.dense_4h_to_h", ("mlp.down",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type bloom."""
    refuse_foreign(values, origin)
    values = under_main_names(values, ALIASES)
    read_choice(values, "apply_residual_connection_post_layernorm", False, {False: False}, origin)
    if stated(values, "pretraining_tp", 1) != 1:
        # transformers then adds up the two output projections in slices, without their biases.
        read_choice(values, "slow_but_exact", False, {False: False}, origin)
    return build({**SHAPE, **read_fields(values, FIELDS), **read_head(values, HEADS, "lm", origin)}, origin)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {**write_fields(config, FIELDS), **write_head(config)}


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a BLOOM."""
    yield Weight("transformer.word_embeddings.weight", ("embedding.weight",))
    yield from module_weights(config, "transformer.word_embeddings_layernorm", "embedding_norm")
    yield from block_weights(config, "transformer.h", MODULES)
    yield from module_weights(config, "transformer.ln_f", "norm")
    yield from head_weights(config, token_classification="classifier")


BLOOM = Family(
    model_type="bloom",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape=SHAPE,
    base_prefix="transformer.",
    copies=lambda config: tied_copy(config, "lm_head.weight", "transformer.word_embeddings.weight"),
    is_optional=lambda name: name.startswith(("lm_head.", "score.", "classifier.", "qa_outputs.")),
)
