"""What GGUF files call things: an architecture's metadata in the words of config.json, and its tensors in ours.

Each architecture of llama.cpp is one row: the family whose models it holds, what its metadata keys are called in that
family's config.json, what config.json must say besides because llama.cpp computes so, and where the names of tensors
differ from the usual ones. A family file (`families/`) then reads and checks the result as if it came from config.json,
so that nothing about a family is said twice. Whether a config can be written as an architecture needs no rules either:
it can when reading what would be written gives it back (`obstacles`), as with families.

Numbers are stored as float32 there: one is read as the shortest decimal that has this float32 (1e-05, not
9.999999747378752e-06), which is what was written in all published files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trivium.checkpoints.gguf_rope import read_rope, rope_factors, shortest, write_rope
from trivium.checkpoints.layouts import Shape
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.families.family import NOT_PUBLISHED, Weight
from trivium.families.reading import shown
from trivium.models.config import Head, ModelConfig

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
EVERY_NTH_LAYER_SEES_ALL = {"gemma2": 2, "gemma3": 6}
# Layers of the largest models of these two, whose attention is scaled in another way.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}

# Metadata key without the architecture's name: key of config.json.
LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Those of config.json that a file may leave out.
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")

# Our module outside the blocks, or in block {n}: its name in the file; ".weight" or ".bias" follows.
OUTSIDE = {
    "embedding": "token_embd",
    "stack.positions": "position_embd",
    "stack.types": "token_types",
    "stack.embedding_norm": "token_embd_norm",
    "stack.norm": "output_norm",
    "head.output": "output",
}
INSIDE = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention.output": "attn_output",
    "attention_output_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_output_norm": "post_ffw_norm",
}
# The layer that BERT puts on its first position is not in GGUF files, nor does a model without a head use it.
WITHOUT_POOLER = {"head_hidden": "none"}
QKV = ("attention.query", "attention.key", "attention.value")


@dataclass(frozen=True)
class Architecture:
    """One kind of model in GGUF files."""

    name: str
    """Its `general.architecture`."""
    model_type: str
    """The family whose config.json says the same."""
    keys: Mapping[str, str]
    """Metadata keys, without the architecture's name in front, and their keys in config.json."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """What config.json must say besides."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Modules of a block that have other names than the usual ones."""
    has_rope: bool = True
    """Whether its positions are rotary."""
    rotates_neighbours: bool = False
    """Whether rotary positions pair neighbouring elements of a head, so that the rows of queries and keys are stored
    in another order than ours, which pairs the two halves."""
    head: Head = "lm"
    """The head of its models."""


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("llama", "llama", LLAMA_KEYS, {"hidden_act": "silu"}, rotates_neighbours=True),
        Architecture("qwen2", "qwen2", LLAMA_KEYS, {"hidden_act": "silu", "use_sliding_window": False}),
        Architecture(
            "qwen3",
            "qwen3",
            LLAMA_KEYS,
            {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
        ),
        Architecture(
            "gemma2",
            "gemma2",
            {
                **LLAMA_KEYS,
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        ),
        Architecture(
            "gemma3",
            "gemma3_text",
            {
                **LLAMA_KEYS,
                "attention.sliding_window": "sliding_window",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None},
        ),
        Architecture(
            "gpt2",
            "gpt2",
            {
                "context_length": "n_positions",
                "embedding_length": "n_embd",
                "block_count": "n_layer",
                "feed_forward_length": "n_inner",
                "attention.head_count": "n_head",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
            },
            {"activation_function": "gelu_new"},
            names=dict.fromkeys(QKV, "attn_qkv"),
            has_rope=False,
        ),
        Architecture(
            "bert",
            "bert",
            {
                "context_length": "max_position_embeddings",
                "embedding_length": "hidden_size",
                "block_count": "num_hidden_layers",
                "feed_forward_length": "intermediate_size",
                "attention.head_count": "num_attention_heads",
                "attention.layer_norm_epsilon": "layer_norm_eps",
            },
            {"hidden_act": "gelu"},
            names={"attention_norm": "attn_output_norm", "mlp_norm": "layer_output_norm"},
            has_rope=False,
            head="none",
        ),
    )
}


class GgufTensor(NamedTuple):
    """One tensor of a file and how it is made of our parameters."""

    weight: Weight
    """Its name in the file, our parameters, and whether several are stacked in it."""
    permuted_heads: int = 0
    """How many heads its rows belong to, whose elements are in another order (0: the order is ours)."""
    offset: float = 0.0
    """What the file adds to each number."""


# ---------------------------------------------------------------------------------------------------------- metadata


def architecture_of(fields: Mapping[str, Any], origin: str) -> Architecture:
    """The row of the table that a file belongs to; UserError for the others, by name."""
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{origin}: general.architecture is {shown(name)}; {', '.join(ARCHITECTURES)} can be read (other models: "
            "as a Hugging Face directory)"
        )
    return ARCHITECTURES[name]


def read_config(
    architecture: Architecture,
    fields: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    origin: str,
    factors: Sequence[float] | None = None,
) -> ModelConfig:
    """Our config of a file with this metadata and tensors of these shapes.

    `factors`: the numbers of the tensor `rope_freqs.weight`, where there is one. Raises UserError for what is
    missing or would be computed otherwise here.
    """
    values: dict[str, Any] = {}
    for key, theirs in architecture.keys.items():
        value = _one(fields.get(f"{architecture.name}.{key}"), f"{origin}: {architecture.name}.{key}")
        if value is not None:
            values[theirs] = shortest(value)
        elif theirs not in OPTIONAL:
            raise UserError(f"{origin}: the metadata has no {architecture.name}.{key}")
    for key in ("block_count", "embedding_length", "attention.head_count"):
        if type(value := values[architecture.keys[key]]) is not int or value < 1:
            raise UserError(f"{origin}: {architecture.name}.{key} is {shown(value)}: it must be a whole number above 0")
    if (layers := values[architecture.keys["block_count"]]) > len(shapes):
        raise UserError(f"{origin}: {architecture.name}.block_count is {layers}, with {len(shapes)} tensors")
    values |= {**architecture.implied, **_told_by_tensors(architecture, shapes, origin)}
    family = FAMILIES[architecture.model_type]
    if architecture.has_rope:
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
        values |= read_rope(architecture.name, fields, values, factors, origin)
    if architecture.name in EVERY_NTH_LAYER_SEES_ALL:
        values |= _gemma(architecture.name, fields, values, origin)
    values["architectures"] = [family.heads[architecture.head].architecture]
    config = family.read_config(values, origin)
    return config.changed(**WITHOUT_POOLER) if architecture.head == "none" else config


def write_fields(architecture: Architecture, config: ModelConfig) -> dict[str, Any]:
    """The metadata of a config: whole numbers, floats, texts."""
    values = FAMILIES[architecture.model_type].write_config(config)
    if architecture.name == "gpt2":
        values["n_inner"] = config.mlp_width  # null there where it is the usual width
    stated = {key: values.get(theirs) for key, theirs in architecture.keys.items()}
    fields = {f"{architecture.name}.{key}": value for key, value in stated.items() if value is not None}
    if architecture.has_rope:
        fields[f"{architecture.name}.attention.value_length"] = config.head_width
        fields |= write_rope(architecture.name, config)
    fields[f"{architecture.name}.vocab_size"] = config.vocab_size
    if architecture.name == "bert":
        fields |= {"bert.attention.causal": False, "bert.pooling_type": 1}  # the mean, as `embed` has it
        fields["tokenizer.ggml.token_type_count"] = config.segment_types
    return fields


def obstacles(architecture: Architecture, config: ModelConfig) -> list[str]:
    """What would have to change for a config to be written as this architecture; empty: nothing."""
    family = FAMILIES[architecture.model_type]
    if config.kind != family.kind:
        return [f"kind must be {family.kind} (is {config.kind})"]
    if config.head != architecture.head:
        return [f"head must be {architecture.head} (is {config.head})"]
    if architecture.head == "none":
        config = config.changed(**family.heads["none"].fields)
    if found := family.obstacles(config):
        return found
    try:
        fields = write_fields(architecture, config)
        factors = rope_factors(config.rope_width, config.rope_theta, config.rope_scaling)
        back = read_config(architecture, fields, shapes_of(architecture, config), architecture.name, factors)
    except UserError as error:
        return [str(error)]
    ignored = NOT_PUBLISHED | (WITHOUT_POOLER.keys() if architecture.head == "none" else set())
    return [
        f"{name} must be {getattr(back, name)} (is {getattr(config, name)})"
        for name in ModelConfig.model_fields
        if name not in ignored and shortest(getattr(back, name)) != shortest(getattr(config, name))
    ]


def architecture_for(config: ModelConfig) -> Architecture:
    """The architecture that a model of this config can be written as; UserError that says what stands against it."""
    own = {name: it for name, it in ARCHITECTURES.items() if FAMILIES[it.model_type].kind == config.kind}
    if not own:
        raise UserError(
            f"GGUF files written here hold decoders, and encoders without a head; this is an {config.kind}: save it as "
            "a Hugging Face directory (--to hf)"
        )
    against = {name: obstacles(architecture, config) for name, architecture in own.items()}
    for name, found in against.items():
        if not found:
            return ARCHITECTURES[name]
    nearest = sorted(against, key=lambda name: len(against[name]))[:2]
    ways = "; ".join(f"to be a {name}: {', '.join(against[name])}" for name in nearest)
    raise UserError(
        f"no architecture of GGUF files has models of this shape; {ways}; or save it as a Hugging Face directory "
        "(--to hf)"
    )


def _one(value: Any, what: str) -> Any:
    """A value that may be stated once for each layer, if all layers have the same."""
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise UserError(f"{what} differs from layer to layer: {shown(value)}")
    return value[0]


def _told_by_tensors(architecture: Architecture, shapes: Mapping[str, Shape], origin: str) -> dict[str, Any]:
    """What of config.json follows from which tensors there are."""
    if len(shapes.get(EMBEDDING, ())) != 2:
        raise UserError(f"{origin}: {EMBEDDING} is missing, or not a matrix")
    values: dict[str, Any] = {"vocab_size": shapes[EMBEDDING][0], "tie_word_embeddings": OUTPUT not in shapes}
    if architecture.name == "llama":
        biased = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
        values |= {key: name in shapes for key, name in biased.items()}
    if architecture.name == "bert":
        values["type_vocab_size"] = shapes.get("token_types.weight", (0,))[0]
        del values["tie_word_embeddings"]
    return values


def _gemma(name: str, fields: Mapping[str, Any], values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Which layers of a Gemma see everything, and what its scores are scaled by."""
    layers, every = values["num_hidden_layers"], EVERY_NTH_LAYER_SEES_ALL[name]
    stated = fields.get(f"{name}.attention.sliding_window_pattern", every)
    if stated not in (every, [(layer + 1) % every != 0 for layer in range(layers)]):
        raise UserError(
            f"{origin}: {name}.attention.sliding_window_pattern is {shown(stated)}: only {every} is supported"
        )
    types = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    width = values["head_dim"]
    if layers == LAYERS_OF_27B[name]:
        width = values["hidden_size"] // values["num_attention_heads"]
    return {"layer_types": types, "query_pre_attn_scalar": width}


# ----------------------------------------------------------------------------------------------------------- tensors


def gguf_tensors(architecture: Architecture, config: ModelConfig, parameters: Mapping[str, Shape]) -> list[GgufTensor]:
    """All tensors of a file; each of our `parameters` is in exactly one of them (a pooler in none)."""
    stacks: dict[str, list[str]] = {}
    for ours in parameters:
        if config.head == "none" and ours.startswith("head."):
            continue
        stacks.setdefault(_name(architecture, ours), []).append(ours)
    return [_tensor(architecture, config, name, tuple(ours)) for name, ours in stacks.items()]


def _name(architecture: Architecture, ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    block = re.fullmatch(r"stack\.blocks\.(\d+)\.(.+)", module)
    if block is None:
        return f"{OUTSIDE[module]}.{kind}"
    return f"blk.{block[1]}.{ {**INSIDE, **architecture.names}[block[2]] }.{kind}"


def _tensor(architecture: Architecture, config: ModelConfig, name: str, ours: tuple[str, ...]) -> GgufTensor:
    heads = 0
    if architecture.rotates_neighbours:
        heads = {"query": config.heads, "key": config.kv_heads}.get(ours[0].split(".")[-2], 0)
    around_one = config.norm == "rmsnorm_around_one" and ours[0].endswith("norm.weight")
    return GgufTensor(Weight(name, ours, "same" if len(ours) == 1 else "stacked"), heads, 1.0 if around_one else 0.0)


def shapes_of(architecture: Architecture, config: ModelConfig) -> dict[str, Shape]:
    """The shapes that decide a config (see `_told_by_tensors`), of the file that would be written."""
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.width)}
    shapes |= {f"blk.{layer}": () for layer in range(config.layers)}
    optional = {
        OUTPUT: not config.tied_embeddings,
        "blk.0.attn_output.bias": config.attention_output_bias,
        "blk.0.ffn_down.bias": config.mlp_bias,
    }
    shapes |= {name: () for name, there in optional.items() if there}
    if config.segment_types:
        shapes["token_types.weight"] = (config.segment_types, config.width)
    return shapes
