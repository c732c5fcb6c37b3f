"""Llama (Touvron et al., 2023) and every model published in its format, such as SmolLM2.

Pre-norm RMSNorm, rotary positions in the half-split layout, grouped-query attention, gated MLP. Our layout of rotary
positions and of grouped heads is that of the published weights, so that only names are translated and the bytes of a
tensor stay as they are.

Residual and embedding dropout are no part of a Llama: they are a matter of training, and its config.json cannot say
them; `attention_dropout` it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, HeadForm, Weight
from trivium.families.naming import block_weights, decoder_heads, head_weights, module_weights, tied_copy
from trivium.families.reading import (
    Fields,
    build,
    read_activation,
    read_fields,
    read_head,
    refuse_foreign,
    shown,
    stated,
    write_activation,
    write_fields,
    write_head,
)
from trivium.families.rope import read_rope, write_rope
from trivium.models.config import Bias, Head, ModelConfig, NormPlacement

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 32_000),
    "hidden_size": ("width", 4096),
    "intermediate_size": ("mlp_width", 11_008),
    "num_hidden_layers": ("layers", 32),
    "num_attention_heads": ("heads", 32),
    "num_key_value_heads": ("kv_heads", None),
    "head_dim": ("head_width", None),
    "max_position_embeddings": ("max_positions", 2048),
    "initializer_range": ("init_std", 0.02),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tied_embeddings", False),
    "attention_dropout": ("attention_dropout", 0.0),
}
# (attention_bias, mlp_bias) in config.json.
BIASES: dict[Bias, tuple[bool, bool]] = {
    "none": (False, False),
    "attention": (True, False),
    "mlp": (False, True),
    "all": (True, True),
}
HEADS = decoder_heads("Llama")
# Modules of a block, for every family that names them as Llama does.
ATTENTION = (
    Weight("input_layernorm", ("attention_norm",)),
    Weight("self_attn.q_proj", ("attention.query",)),
    Weight("self_attn.k_proj", ("attention.key",)),
    Weight("self_attn.v_proj", ("attention.value",)),
    Weight("self_attn.o_proj", ("attention.output",)),
)
QK_NORMS = (
    Weight("self_attn.q_norm", ("attention.query_norm",)),
    Weight("self_attn.k_norm", ("attention.key_norm",)),
)
NORMS: dict[NormPlacement, tuple[Weight, ...]] = {
    "pre": (Weight("post_attention_layernorm", ("mlp_norm",)),),
    "sandwich": (
        Weight("post_attention_layernorm", ("attention_output_norm",)),
        Weight("pre_feedforward_layernorm", ("mlp_norm",)),
        Weight("post_feedforward_layernorm", ("mlp_output_norm",)),
    ),
}
MLP = (
    Weight("mlp.gate_proj", ("mlp.gate",)),
    Weight("mlp.up_proj", ("mlp.up",)),
    Weight("mlp.down_proj", ("mlp.down",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type llama."""
    biases = (stated(values, "attention_bias", False), stated(values, "mlp_bias", False))
    if biases not in BIASES.values():
        raise UserError(f"{origin}: attention_bias and mlp_bias are {shown(biases)}: use true or false")
    config = build(
        {
            **read_llama_like(values, origin, FIELDS, HEADS),
            **read_rope(values, origin, max_positions=FIELDS["max_position_embeddings"][1]),
            "activation": read_activation(values, "hidden_act", "silu", origin),
            "bias": next(name for name, pair in BIASES.items() if pair == biases),
        },
        origin,
    )
    return with_even_heads(config, origin)


def read_llama_like(
    values: Mapping[str, Any], origin: str, fields: Fields, heads: Mapping[Head, HeadForm]
) -> dict[str, Any]:
    """What the families that are built as Llama is have in common: widths and head."""
    refuse_foreign(values, origin)
    found = {**read_fields(values, fields), **read_head(values, heads, "lm", origin)}
    if values.get("num_key_value_heads", 0) is None:
        # An explicit null means as many as there are heads, also where leaving the key out means a number.
        found.pop("kv_heads", None)
    return found


def with_defaults(fields: Fields, defaults: Mapping[str, Any]) -> Fields:
    """The same table where leaving out some keys means something else."""
    return {theirs: (ours, defaults.get(theirs, default)) for theirs, (ours, default) in fields.items()}


def with_even_heads(config: ModelConfig, origin: str) -> ModelConfig:
    """The config, unless its heads do not divide its width: transformers opens no such file, whatever head_dim says."""
    if config.width % config.heads:
        raise UserError(f"{origin}: heads={config.heads} must divide width={config.width}")
    return config


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    attention_bias, mlp_bias = BIASES.get(config.bias, (False, False))
    return {
        **write_fields(config, FIELDS),
        **write_rope(config),
        **write_head(config),
        "hidden_act": write_activation(config.activation),
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
    }


def llama_like_weights(config: ModelConfig, base: str = "model") -> Iterator[Weight]:
    """All tensors of a model that names them as Llama does; `base` is the name of its trunk."""
    yield Weight(f"{base}.embed_tokens.weight", ("embedding.weight",))
    qk_norms = QK_NORMS if config.qk_norm == "head" else ()
    modules = (*ATTENTION, *qk_norms, *NORMS[config.norm_placement], *MLP)
    yield from block_weights(config, f"{base}.layers", modules)
    yield from module_weights(config, f"{base}.norm", "norm")
    yield from head_weights(config)


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a Llama, whose trunk has another name under a `span` head."""
    return llama_like_weights(config, "transformer" if config.head == "span" else "model")


def copies(config: ModelConfig) -> dict[str, str]:
    """A file may hold the tied head once more."""
    return tied_copy(config, "lm_head.weight", "model.embed_tokens.weight")


def is_redundant(published: str) -> bool:
    """Early files also hold the rotary frequencies."""
    return published.endswith(".rotary_emb.inv_freq")


def is_of_another_head(published: str) -> bool:
    """Whether a tensor belongs to one of the heads."""
    return published.startswith(("lm_head.", "score.", "qa_outputs."))


LLAMA = Family(
    model_type="llama",
    kind="decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={"norm": "rmsnorm", "norm_placement": "pre", "positions": "rotary", "mlp": "gated", "activation": "silu"},
    base_prefix="model.",
    copies=copies,
    is_redundant=is_redundant,
    is_optional=is_of_another_head,
)
