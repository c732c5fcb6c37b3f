"""Llama (Touvron et al., 2023) and every model published in its format, such as SmolLM2.

Pre-norm RMSNorm, rotary positions in the half-split layout, grouped-query attention, gated MLP. Our layout of rotary
positions and of grouped heads is that of the published weights, so that only names are translated and the bytes of a
tensor stay as they are. Left out, and refused by name: scaled rotary positions (Llama 3.1), quantized weights.

Residual and embedding dropout are no part of a Llama: they are a matter of training, and its config.json cannot say
them; `attention_dropout` it can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.families.family import Family, shown
from trivium.models.config import Activation, Bias, ModelConfig

# Their key: (our field, what a config.json without the key means; None: it must be there, or follows from others).
FIELDS: dict[str, tuple[str, Any]] = {
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
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# (attention_bias, mlp_bias) in config.json.
BIASES: dict[Bias, tuple[bool, bool]] = {
    "none": (False, False),
    "attention": (True, False),
    "mlp": (False, True),
    "all": (True, True),
}
# Modules outside the blocks, and inside block {n}; ".weight" or ".bias" follows.
MODULES = {"embedding": "model.embed_tokens", "stack.norm": "model.norm", "head": "lm_head"}
BLOCK_MODULES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type llama."""
    architectures = values.get("architectures")
    if architectures not in (None, ["LlamaForCausalLM"]):
        raise UserError(f"{origin}: architectures is {shown(architectures)}: only LlamaForCausalLM is a language model")
    for key in ("auto_map", "quantization_config"):
        if values.get(key):
            raise UserError(f"{origin}: {key} is set: neither code nor packed weights of a model directory are used")
    activation = _stated(values, "hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"{origin}: hidden_act is {shown(activation)}: known are {', '.join(sorted(ACTIVATIONS))}")
    biases = (_stated(values, "attention_bias", False), _stated(values, "mlp_bias", False))
    if biases not in BIASES.values():
        raise UserError(f"{origin}: attention_bias and mlp_bias are {shown(biases)}: use true or false")
    fields = {ours: _stated(values, theirs, default) for theirs, (ours, default) in FIELDS.items()}
    return build_settings(
        ModelConfig,
        {
            **{name: value for name, value in fields.items() if value is not None},
            "rope_theta": _rope_theta(values, origin),
            "activation": ACTIVATIONS[activation],
            "bias": next(name for name, pair in BIASES.items() if pair == biases),
        },
        origin,
    )


def _stated(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """What `values` say; a null says nothing."""
    value = values.get(key)
    return default if value is None else value


def _rope_theta(values: Mapping[str, Any], origin: str) -> Any:
    """The base of the rotary wavelengths: under `rope_parameters` since transformers 5, `rope_theta` before."""
    theta = _stated(values, "rope_theta", 10_000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = _stated(values, key, {})
        if not isinstance(rope, dict):
            raise UserError(f"{origin}: {key} must be an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{origin}: {key} of type {shown(kind)}: scaled rotary positions are not supported yet")
        theta = rope.get("rope_theta", theta)
    return theta


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it, readable by transformers 4 (`rope_theta`) and 5 (`rope_parameters`)."""
    attention_bias, mlp_bias = BIASES[config.bias]
    return {
        **{theirs: getattr(config, ours) for theirs, (ours, _) in FIELDS.items()},
        "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == config.activation),
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
    }


def obstacles(config: ModelConfig) -> list[str]:
    """What would have to change for `config` to be a Llama."""
    needed = {"norm": "rmsnorm", "norm_placement": "pre", "positions": "rotary", "mlp": "gated"}
    found = [
        f"{field} must be {value} (is {getattr(config, field)})"
        for field, value in needed.items()
        if getattr(config, field) != value
    ]
    if config.bias not in BIASES:
        found.append(f"bias must be one of {', '.join(BIASES)} (is {config.bias})")
    if config.width % config.heads:
        found.append(f"heads ({config.heads}) must divide width ({config.width})")
    return found


def to_published(name: str) -> str:
    """`stack.blocks.3.mlp.up.weight` -> `model.layers.3.mlp.up_proj.weight`; KeyError for a name that is not ours."""
    module, _, kind = name.rpartition(".")
    inside = re.fullmatch(r"stack\.blocks\.(\d+)\.(.+)", module)
    if inside:
        return f"model.layers.{inside[1]}.{BLOCK_MODULES[inside[2]]}.{kind}"
    return f"{MODULES[module]}.{kind}"


def is_redundant(published: str) -> bool:
    """Early Llama files also hold the rotary frequencies."""
    return published.endswith(".rotary_emb.inv_freq")


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    obstacles=obstacles,
    to_published=to_published,
    is_redundant=is_redundant,
)
