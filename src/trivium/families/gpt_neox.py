"""GPT-NeoX (Black et al., 2022), the family of Pythia (Biderman et al., 2023).

Attention and MLP read the same input (or follow each other), a part of each head is rotated, query, key and value are
stored as one tensor head by head, and the output projection is a matrix of its own. `attention.bias` in older files is
the causal mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.families.family import Family, Weight
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
    read_activation,
    read_choice,
    read_fields,
    read_head,
    refuse_foreign,
    write_activation,
    write_fields,
    write_head,
)
from trivium.families.rope import read_partial_rope, write_partial_rope
from trivium.models.config import ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 50_432),
    "hidden_size": ("width", 6144),
    "intermediate_size": ("mlp_width", 24_576),
    "num_hidden_layers": ("layers", 44),
    "num_attention_heads": ("heads", 64),
    "max_position_embeddings": ("max_positions", 2048),
    "initializer_range": ("init_std", 0.02),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "tie_word_embeddings": ("tied_embeddings", False),
    "hidden_dropout": ("dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
}
THETA_KEY, SHARE_KEY = "rotary_emb_base", "rotary_pct"
USUAL_SHARE = 0.25
HEADS = decoder_heads("GPTNeoX")
SHAPE = {"norm": "layernorm", "norm_placement": "pre", "positions": "rotary", "mlp": "plain"}
MODULES = (
    Weight("input_layernorm", ("attention_norm",)),
    Weight("attention.query_key_value", QUERY_KEY_VALUE, "stacked_by_head"),
    Weight("attention.dense", ("attention.output",)),
    Weight("post_attention_layernorm", ("mlp_norm",)),
    Weight("mlp.dense_h_to_4h", ("mlp.up",)),
    Weight("mlp.dense_4h_to_h", ("mlp.down",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type gpt_neox."""
    refuse_foreign(values, origin)
    return build(
        {
            **SHAPE,
            **read_fields(values, FIELDS),
            **read_head(values, HEADS, "lm", origin),
            **read_partial_rope(
                values,
                origin,
                max_positions=FIELDS["max_position_embeddings"][1],
                theta_key=THETA_KEY,
                share_key=SHARE_KEY,
                share=USUAL_SHARE,
            ),
            "activation": read_activation(values, "hidden_act", "gelu", origin),
            "residual": read_choice(
                values, "use_parallel_residual", True, {True: "parallel", False: "sequential"}, origin
            ),
            "bias": read_choice(values, "attention_bias", True, {True: "all", False: "mlp"}, origin),
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_partial_rope(config, theta_key=THETA_KEY, share_key=SHARE_KEY),
        **write_head(config),
        "hidden_act": write_activation(config.activation),
        "use_parallel_residual": config.residual == "parallel",
        "attention_bias": config.bias != "mlp",
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a GPT-NeoX."""
    yield Weight("gpt_neox.embed_in.weight", ("embedding.weight",))
    yield from block_weights(config, "gpt_neox.layers", MODULES)
    yield from module_weights(config, "gpt_neox.final_layer_norm", "norm")
    yield from head_weights(config, lm="embed_out", token_classification="classifier")


GPT_NEOX = Family(
    model_type="gpt_neox",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={
        **SHAPE,
        "activation": "gelu",
        "bias": "all",
        "residual": "parallel",
        "rope_share": USUAL_SHARE,
        "tied_embeddings": False,
    },
    base_prefix="gpt_neox.",
    copies=lambda config: tied_copy(config, "embed_out.weight", "gpt_neox.embed_in.weight"),
    is_redundant=lambda name: name.endswith((".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")),
    is_optional=lambda name: name.startswith(("embed_out.", "score.", "classifier.", "qa_outputs.")),
)
