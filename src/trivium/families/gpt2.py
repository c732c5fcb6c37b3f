"""GPT-2 (Radford et al., 2019): pre-norm LayerNorm, learned positions, plain MLP with biases everywhere.

Its matrices are stored as (in, out), and query, key and value as one. `attn.bias` in older files is the causal mask.
Residual dropout stands for both of its dropouts: that of the embeddings is not told apart here.
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
from trivium.models.config import ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 50_257),
    "n_embd": ("width", 768),
    "n_layer": ("layers", 12),
    "n_head": ("heads", 12),
    "n_inner": ("mlp_width", None),
    "n_positions": ("max_positions", 1024),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    "initializer_range": ("init_std", 0.02),
    "tie_word_embeddings": ("tied_embeddings", True),
    "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1),
}
# Other names of some keys, which count where both are there.
ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
HEADS = decoder_heads("GPT2", lm="LMHeadModel")
SHAPE = {"norm": "layernorm", "norm_placement": "pre", "positions": "learned", "mlp": "plain", "bias": "all"}
MODULES = (
    Weight("ln_1", ("attention_norm",)),
    Weight("attn.c_attn", QUERY_KEY_VALUE, "stacked_transposed"),
    Weight("attn.c_proj", ("attention.output",), "transposed"),
    Weight("ln_2", ("mlp_norm",)),
    Weight("mlp.c_fc", ("mlp.up",), "transposed"),
    Weight("mlp.c_proj", ("mlp.down",), "transposed"),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type gpt2."""
    refuse_foreign(values, origin)
    values = under_main_names(values, ALIASES)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        read_choice(values, key, False, {False: False}, origin)
    return build(
        {
            **SHAPE,
            **read_fields(values, FIELDS),
            **read_head(values, HEADS, "lm", origin),
            "activation": read_activation(values, "activation_function", "gelu_new", origin),
            # 0: 1 / sqrt(N).
            "attention_scale": read_choice(values, "scale_attn_weights", True, {True: 0.0, False: 1.0}, origin),
        },
        origin,
    )


def under_main_names(values: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """What `values` say under other names is said under the main ones."""
    return {**values, **{main: values[name] for name, main in aliases.items() if values.get(name) is not None}}


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_head(config),
        "activation_function": write_activation(config.activation),
        "scale_attn_weights": config.attention_scale != 1.0,
        "embd_pdrop": config.dropout,
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a GPT-2."""
    yield Weight("transformer.wte.weight", ("embedding.weight",))
    yield Weight("transformer.wpe.weight", ("stack.positions.weight",))
    yield from block_weights(config, "transformer.h", MODULES)
    yield from module_weights(config, "transformer.ln_f", "norm")
    yield from head_weights(config, token_classification="classifier")


GPT2 = Family(
    model_type="gpt2",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**SHAPE, "activation": "gelu_tanh"},
    base_prefix="transformer.",
    copies=lambda config: tied_copy(config, "lm_head.weight", "transformer.wte.weight"),
    is_redundant=lambda name: name.endswith((".attn.bias", ".attn.masked_bias")),
    is_optional=lambda name: name.startswith(
        ("lm_head.", "score.", "classifier.", "qa_outputs.", "multiple_choice_head.")
    ),
)
