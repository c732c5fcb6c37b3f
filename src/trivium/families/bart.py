"""BART (Lewis et al., 2020): an encoder-decoder with learned positions, post-norm, and normed embeddings.

mBART and Marian name their tensors and the keys of their config.json as BART does, so that what the three have in
common stands here: `read_two_stacks`, `write_two_stacks`, and `weights`, in which the config decides what there is.

- The bias of the token scores (`final_logits_bias`, zeros in the published models) is stored as a row. It is a constant
  in `transformers` and learned here.
- A head for classes reads the target's last hidden state. The target is the source, shifted right; `transformers` reads
  it where the source has its last end-of-text token, which is the same place.
- The two stacks may differ in depth only: other heads or inner widths in one of them are refused.
- So are models whose output matrix is their own: `transformers` 5 gives them three tables of embeddings, earlier
  versions one.

Invariant its test checks: results, gradients and generated tokens are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, HeadForm, Weight
from trivium.families.naming import module_tensors
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
from trivium.models.config import Head, ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 50_265),
    "d_model": ("width", 1024),
    "encoder_layers": ("layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "encoder_attention_heads": ("heads", 16),
    "encoder_ffn_dim": ("mlp_width", 4096),
    "max_position_embeddings": ("max_positions", 1024),
    "decoder_start_token_id": ("decoder_start_id", 2),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "init_std": ("init_std", 0.02),
}
# Stated once for each stack, with what a config.json without the key means; equal here.
EQUAL = {"attention_heads": 16, "ffn_dim": 4096}
# The `embedding_scale` that becomes the square root of the width.
SQRT_WIDTH = 0.0
# Modules inside a block; ".weight" and ".bias" follow, and cross-attention is the decoder's alone.
BLOCK_MODULES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "cross.query": "encoder_attn.q_proj",
    "cross.key": "encoder_attn.k_proj",
    "cross.value": "encoder_attn.v_proj",
    "cross.output": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "mlp_norm": "final_layer_norm",
}
# What BART, mBART and Marian are without saying so, and what BART is.
TWO_STACKS: dict[str, Any] = {
    "kind": "encoder-decoder",
    "norm": "layernorm",
    "mlp": "plain",
    "bias": "all",
}
IMPLIED: dict[str, Any] = {
    **TWO_STACKS,
    "norm_placement": "post",
    "positions": "learned",
    "position_offset": 2,
    "embedding_norm": True,
}
# What a fresh model has besides.
FRESH: dict[str, Any] = {"activation": "gelu", "max_positions": 1024, "head_bias": True}
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def heads_of(prefix: str) -> dict[Head, HeadForm]:
    """The heads of BART and mBART, whose classes in `transformers` differ by a prefix."""
    of_a_text = HeadForm(
        f"{prefix}ForSequenceClassification", {"head_hidden": "tanh", "head_bias": True, "pooling": "last"}
    )
    return {
        "lm": HeadForm(f"{prefix}ForConditionalGeneration", {"head_bias": True}),
        "classification": of_a_text,
        "scalar": of_a_text,
        "span": HeadForm(f"{prefix}ForQuestionAnswering", {"head_bias": True}),
        "none": HeadForm(f"{prefix}Model"),
    }


HEADS = heads_of("Bart")


def read_two_stacks(
    values: Mapping[str, Any], origin: str, fields: Fields, heads: Mapping[Head, HeadForm], implied: Mapping[str, Any]
) -> ModelConfig:
    """Our config for a config.json in BART's words; `implied` is what the family has without saying so."""
    refuse_foreign(values, origin)
    for key, default in EQUAL.items():
        encoder, decoder = (stated(values, f"{stack}_{key}", default) for stack in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(
                f"{origin}: encoder_{key} is {shown(encoder)} and decoder_{key} is {shown(decoder)}: they must be equal"
            )
    read_choice(values, "tie_word_embeddings", True, {True: True}, origin)
    return build(
        {
            **implied,
            **read_fields(values, fields),
            **read_head(values, heads, "lm", origin),
            "activation": read_activation(values, "activation_function", "gelu", origin),
            "embedding_scale": read_choice(values, "scale_embedding", False, {False: 1.0, True: SQRT_WIDTH}, origin),
        },
        origin,
    )


def write_two_stacks(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    """The inverse of `read_two_stacks`."""
    return {
        **write_fields(config, fields),
        **write_head(config),
        "decoder_attention_heads": config.heads,
        "decoder_ffn_dim": config.mlp_width,
        "activation_function": write_activation(config.activation),
        "scale_embedding": config.embedding_scale != 1.0,
        "tie_word_embeddings": True,
    }


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type bart."""
    classes = {} if "num_labels" in values else {"num_labels": 3}
    return read_two_stacks({**classes, **values}, origin, FIELDS, HEADS, IMPLIED)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    return write_two_stacks(config, FIELDS)


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a BART, an mBART or a Marian."""
    yield Weight("model.shared.weight", ("embedding.weight",))
    for stack, layers in (("encoder", config.layers), ("decoder", config.decoder_layers)):
        if config.positions == "learned":
            yield Weight(f"model.{stack}.embed_positions.weight", (f"{stack}.positions.weight",))
        if config.embedding_norm:
            yield from module_tensors(f"model.{stack}.layernorm_embedding", f"{stack}.embedding_norm")
        for layer in range(layers):
            for ours, theirs in BLOCK_MODULES.items():
                if stack == "decoder" or not ours.startswith("cross"):
                    yield from module_tensors(
                        f"model.{stack}.layers.{layer}.{theirs}", f"{stack}.blocks.{layer}.{ours}"
                    )
        if config.norm_placement == "pre":
            yield from module_tensors(f"model.{stack}.layer_norm", f"{stack}.norm")
    if config.head == "lm":
        yield Weight("final_logits_bias", ("head.bias",), "row")
    elif config.head in ("classification", "scalar"):
        yield from module_tensors("classification_head.dense", "head.hidden")
        yield from module_tensors("classification_head.out_proj", "head.output")
    elif config.head == "span":
        yield from module_tensors("qa_outputs", "head.output")


def copies(config: ModelConfig) -> dict[str, str]:
    """A file may hold the one embedding table up to four times."""
    names = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    names += ["lm_head.weight"] if config.head == "lm" else []
    return dict.fromkeys(names, "model.shared.weight")


def is_optional(published: str) -> bool:
    """The heads."""
    return published.startswith(("final_logits_bias", "lm_head.", "classification_head.", "qa_outputs."))


BART = Family(
    model_type="bart",
    kind="encoder-decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={**IMPLIED, **FRESH},
    base_prefix="model.",
    copies=copies,
    is_redundant=lambda name: name.endswith(".version"),
    is_optional=is_optional,
    ids=IDS,
)
