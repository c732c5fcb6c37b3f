"""ModernBERT (Warner et al., 2024): an encoder with a decoder's inventions: rotary positions, a gated MLP, windows.

Pre-norm, without a norm before the first attention, whose input the norm of the embeddings has just left. Every third
layer sees everything; the others see `local_attention` / 2 positions on either side (our `sliding_window` also counts
the position itself) and have a rotary base of their own. Query, key and value are stored as one matrix, and so are the
two inputs of the MLP, the one under the activation first.

- All heads but the bare one have a layer with activation and norm, which comes after pooling.
- `config.json` may name an activation for the head alone, which is refused unless it is that of the MLP.
- Dropout of the residual stream is not read: the published models have none.

Invariant its test checks: results and gradients of all heads are those of `transformers`, also beyond a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.encoder_reading import HeadNames, encoder_heads, head_weights
from trivium.families.family import Family, Weight
from trivium.families.layer_types import FULL, WINDOWED, read_layer_types, write_layer_types
from trivium.families.llama import BIASES
from trivium.families.naming import QUERY_KEY_VALUE, block_weights, module_weights, tied_copy
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
from trivium.families.rope import read_rope_by_layer, write_rope_by_layer
from trivium.models.config import Head, ModelConfig, Norm, Pooling

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 50_368),
    "hidden_size": ("width", 768),
    "intermediate_size": ("mlp_width", 1152),
    "num_hidden_layers": ("layers", 22),
    "num_attention_heads": ("heads", 12),
    "max_position_embeddings": ("max_positions", 8192),
    "initializer_range": ("init_std", 0.02),
    "norm_eps": ("norm_eps", 1e-5),
    "attention_dropout": ("attention_dropout", 0.0),
    "tie_word_embeddings": ("tied_embeddings", True),
}
IMPLIED: dict[str, Any] = {
    "kind": "encoder",
    "norm_placement": "pre",
    "norm_first_attention": False,
    "positions": "rotary",
    "mlp": "gated",
    "embedding_norm": True,
}
LOCAL_ATTENTION, FULL_EVERY = 128, 3
# Their keys before transformers 5, and the bases that config.json need not state.
ROPE_BASES = {FULL: ("global_rope_theta", 160_000.0), WINDOWED: ("local_rope_theta", 10_000.0)}
FLAG = {False: False, True: True}
NORMS: dict[bool, Norm] = {False: "layernorm_without_bias", True: "layernorm"}
POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean"}
HIDDEN = {"head_hidden": "activation_norm", "head_hidden_bias": False}
HEADED: tuple[Head, ...] = ("lm", "classification", "scalar", "token_classification", "span")
HEADS = encoder_heads("ModernBert", dict.fromkeys(HEADED, HIDDEN))
MODULES = (
    Weight("attn_norm", ("attention_norm",)),
    Weight("attn.Wqkv", QUERY_KEY_VALUE, "stacked"),
    Weight("attn.Wo", ("attention.output",)),
    Weight("mlp_norm", ("mlp_norm",)),
    Weight("mlp.Wi", ("mlp.gate", "mlp.up"), "stacked"),
    Weight("mlp.Wo", ("mlp.down",)),
)


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type modernbert."""
    refuse_foreign(values, origin)
    fields = read_fields(values, FIELDS)
    biases = (stated(values, "attention_bias", False), stated(values, "mlp_bias", False))
    if biases not in BIASES.values():
        raise UserError(f"{origin}: attention_bias and mlp_bias are {shown(biases)}: use true or false")
    layers = _read_layers(values, fields["layers"], origin)
    return build(
        {
            **IMPLIED,
            **fields,
            **layers,
            **_read_rope(values, origin, windowed=bool(layers)),
            **_read_head(values, origin),
            "activation": read_activation(values, "hidden_activation", "gelu", origin),
            "bias": next(name for name, pair in BIASES.items() if pair == biases),
            "norm": read_choice(values, "norm_bias", False, NORMS, origin),
            "pooling": read_choice(values, "classifier_pooling", "cls", POOLINGS, origin),
        },
        origin,
    )


def _read_layers(values: Mapping[str, Any], layers: object, origin: str) -> dict[str, Any]:
    """Which layers are windowed, and how far these see."""
    every = stated(values, "global_attn_every_n_layers", FULL_EVERY)
    if type(every) is not int or every < 1:
        raise UserError(f"{origin}: global_attn_every_n_layers is {shown(every)}: give a number above 0")
    both_sides = stated(values, "local_attention", LOCAL_ATTENTION)
    if type(both_sides) is not int or both_sides < 0:
        raise UserError(f"{origin}: local_attention is {shown(both_sides)}: give a number that is not negative")
    return read_layer_types(values, layers, both_sides // 2 + 1, lambda layer: layer % every != 0, origin)


def _read_rope(values: Mapping[str, Any], origin: str, *, windowed: bool) -> dict[str, Any]:
    """Both bases, and how the one of full layers is stretched."""
    if values.get("rope_scaling"):
        raise UserError(f"{origin}: rope_scaling stretches windowed layers too: stretch full ones in rope_parameters")
    given = stated(values, "rope_parameters", {})
    if isinstance(given, dict):
        bases = {name: {"rope_theta": stated(values, key, base)} for name, (key, base) in ROPE_BASES.items()}
        given = {**bases, **{name: _with(bases.get(name, {}), part) for name, part in given.items()}}
    rope = read_rope_by_layer(
        {**values, "rope_parameters": given}, origin, max_positions=FIELDS["max_position_embeddings"][1]
    )
    return rope if windowed else {**rope, "local_rope_theta": 0.0}


def _with(defaults: Mapping[str, Any], given: object) -> object:
    """`given` with what it does not state; what is no object is left for others to refuse."""
    stated_ones = {} if given is None else given
    if not isinstance(stated_ones, dict):
        return given
    return {**defaults, **{key: value for key, value in stated_ones.items() if value is not None}}


def _read_head(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The head, with the biases and the activation that config.json may choose."""
    found = read_head(values, HEADS, "lm", origin)
    found["head_hidden_bias"] = read_choice(values, "classifier_bias", False, FLAG, origin)
    inside = read_activation(values, "hidden_activation", "gelu", origin)
    if found["head"] != "none" and read_activation(values, "classifier_activation", "gelu", origin) != inside:
        raise UserError(f"{origin}: classifier_activation must be hidden_activation, {write_activation(inside)}")
    if found["head"] == "lm":
        found["head_bias"] = read_choice(values, "decoder_bias", True, FLAG, origin)
    return found


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it, for transformers 5 and for what came before."""
    attention_bias, mlp_bias = BIASES.get(config.bias, (False, False))
    return {
        **write_fields(config, FIELDS),
        **write_head(config),
        **write_layer_types(config),
        **_write_every(config),
        "local_attention": 2 * (config.sliding_window - 1) if config.sliding_window else LOCAL_ATTENTION,
        "rope_parameters": write_rope_by_layer(config)["rope_parameters"],
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta or config.rope_theta,
        "hidden_activation": write_activation(config.activation),
        "classifier_activation": write_activation(config.activation),
        "classifier_pooling": "mean" if config.pooling == "mean" else "cls",
        "classifier_bias": config.head_hidden_bias,
        "decoder_bias": config.head_bias or config.head != "lm",
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "norm_bias": config.norm == "layernorm",
    }


def _write_every(config: ModelConfig) -> dict[str, int]:
    """The older form of `layer_types`, where it can say the same."""
    full = [layer for layer in range(config.layers) if not config.is_windowed(layer)]
    every = full[1] if len(full) > 1 else config.layers
    return {"global_attn_every_n_layers": every} if full == list(range(0, config.layers, every)) else {}


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a ModernBERT."""
    yield Weight("model.embeddings.tok_embeddings.weight", ("embedding.weight",))
    yield from module_weights(config, "model.embeddings.norm", "embedding_norm")
    for weight in block_weights(config, "model.layers", MODULES):
        if not weight.ours[0].startswith("stack.blocks.0.attention_norm."):
            yield weight
    yield from module_weights(config, "model.final_norm", "norm")
    output = "decoder" if config.head == "lm" else "classifier"
    yield from head_weights(config, HeadNames(output, "head.dense", "head.norm", "decoder.bias"))


MODERNBERT = Family(
    model_type="modernbert",
    kind="encoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={
        **IMPLIED,
        "norm": "layernorm_without_bias",
        "activation": "gelu",
        "rope_theta": ROPE_BASES[FULL][1],
        **HEADS["lm"].fields,
    },
    base_prefix="model.",
    copies=lambda config: tied_copy(config, "decoder.weight", "model.embeddings.tok_embeddings.weight"),
    is_optional=lambda name: name.startswith(("head.", "decoder.", "classifier.")),
    # By default transformers takes the id of the published vocabulary, which a smaller one has not.
    ids={"pad_token_id": 0},
)
