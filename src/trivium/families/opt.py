"""OPT (Zhang et al., 2022): learned positions of which the first two rows are never read, ReLU, pre-norm or post-norm.

The smallest but one (350m) normalises after each sublayer, and its embeddings are narrower than its blocks: the former
is supported, the latter is refused. Dropping whole layers in training (`layerdrop`) is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, Weight
from trivium.families.naming import block_weights, decoder_heads, head_weights, module_weights, tied_copy
from trivium.families.reading import (
    Fields,
    build,
    read_activation,
    read_choice,
    read_fields,
    read_head,
    refuse_foreign,
    shown,
    stated,
    write_activation,
    write_fields,
    write_head,
)
from trivium.models.config import ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 50_272),
    "hidden_size": ("width", 768),
    "ffn_dim": ("mlp_width", 3072),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "max_position_embeddings": ("max_positions", 2048),
    "init_std": ("init_std", 0.02),
    "tie_word_embeddings": ("tied_embeddings", True),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
}
HEADS = decoder_heads("OPT", without=("token_classification",))
# The epsilon is PyTorch's, which config.json does not state.
SHAPE = {"norm": "layernorm", "norm_eps": 1e-5, "positions": "learned", "position_offset": 2, "mlp": "plain"}
MODULES = (
    Weight("self_attn_layer_norm", ("attention_norm",)),
    Weight("self_attn.q_proj", ("attention.query",)),
    Weight("self_attn.k_proj", ("attention.key",)),
    Weight("self_attn.v_proj", ("attention.value",)),
    Weight("self_attn.out_proj", ("attention.output",)),
    Weight("final_layer_norm", ("mlp_norm",)),
    Weight("fc1", ("mlp.up",)),
    Weight("fc2", ("mlp.down",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type opt."""
    refuse_foreign(values, origin)
    fields = read_fields(values, FIELDS)
    width = stated(values, "word_embed_proj_dim", fields["width"])
    if width != fields["width"]:
        raise UserError(f"{origin}: word_embed_proj_dim is {shown(width)}: it must be hidden_size, {fields['width']}")
    read_choice(values, "layer_norm_elementwise_affine", True, {True: True}, origin)
    read_choice(values, "_remove_final_layer_norm", False, {False: False}, origin)
    return build(
        {
            **SHAPE,
            **fields,
            **read_head(values, HEADS, "lm", origin),
            "activation": read_activation(values, "activation_function", "relu", origin),
            "norm_placement": read_choice(values, "do_layer_norm_before", True, {True: "pre", False: "post"}, origin),
            "bias": read_choice(values, "enable_bias", True, {True: "all", False: "none"}, origin),
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return {
        **write_fields(config, FIELDS),
        **write_head(config),
        "word_embed_proj_dim": config.width,
        "activation_function": write_activation(config.activation),
        "do_layer_norm_before": config.norm_placement == "pre",
        "enable_bias": config.bias == "all",
    }


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of an OPT; there is no norm at the end where norms come after each sublayer."""
    yield Weight("model.decoder.embed_tokens.weight", ("embedding.weight",))
    yield Weight("model.decoder.embed_positions.weight", ("stack.positions.weight",))
    yield from block_weights(config, "model.decoder.layers", MODULES)
    if config.norm_placement == "pre":
        yield from module_weights(config, "model.decoder.final_layer_norm", "norm")
    yield from head_weights(config)


OPT = Family(
    model_type="opt",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**SHAPE, "norm_placement": "pre", "activation": "relu", "bias": "all"},
    base_prefix="model.",
    copies=lambda config: tied_copy(config, "lm_head.weight", "model.decoder.embed_tokens.weight"),
    is_optional=lambda name: name.startswith(("lm_head.", "score.", "qa_outputs.")),
)
