"""How many parameters a model has and how many operations it needs, from its config alone (no torch).

FLOPs count each multiplication and each addition of a matrix product, 2 per weight and token; norms, activations,
softmax, rotations and the embedding look-up are left out, as is usual (Kaplan et al., 2020, table 1). Attention is
counted in full: that causal scores are half masked, or windowed ones mostly, is the kernel's affair. A backward pass
costs twice a forward one.

Invariant its test checks: the counts equal those of the built model and of torch's own FLOP counter, exactly.
"""

from __future__ import annotations

from typing import Any

from trivium.models.config import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """All parameters; a table that is both embedding and head counts once."""
    stacks = _stack(config, config.layers, crosses=False)
    if config.kind == "encoder-decoder":
        stacks += _stack(config, config.decoder_layers, crosses=True)
    return num_embedding_parameters(config) + stacks + _head(config)


def num_embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the tables of tokens, positions, segment types and relative distances; an untied head is not among
    them."""
    positions = config.position_offset + config.max_positions if config.positions == "learned" else 0
    relative = config.relative_buckets * config.heads if config.positions == "relative" else 0
    stacks = 2 if config.kind == "encoder-decoder" else 1
    return config.vocab_size * config.width + stacks * ((positions + config.segment_types) * config.width + relative)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Forward FLOPs for one token that attends to `context` positions, logits included.

    Of an encoder-decoder: the mean over the tokens of a source and a target of `context` positions each.
    """
    encoding = config.layers * _block_flops(config, context)
    if config.kind != "encoder-decoder":
        return encoding + _head_flops(config)
    decoding = config.decoder_layers * (_block_flops(config, context) + _attention_flops(config, context))
    return (encoding + decoding + _head_flops(config)) // 2


def training_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of forward and backward for one token of a row of `context` positions, nothing recomputed."""
    return 3 * flops_per_token(config, context)


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """The model in numbers."""
    return {
        "kind": config.kind,
        "parameters": num_parameters(config),
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "context": config.max_positions,
        "vocab_size": config.vocab_size,
        "training_flops_per_token": training_flops_per_token(config, config.max_positions),
        **({"decoder_layers": config.decoder_layers} if config.kind == "encoder-decoder" else {}),
    }


def _block_flops(config: ModelConfig, context: int) -> int:
    """For one token, of one block without cross-attention."""
    return _attention_flops(config, context) + 2 * config.width * config.mlp_width * _mlp_matrices(config)


def _attention_flops(config: ModelConfig, context: int) -> int:
    """Projections, scores and the weighted sum of values; a source's keys and values count as if per target token."""
    query_width, kv_width = config.heads * config.head_width, config.kv_heads * config.head_width
    return 2 * (config.width * (2 * query_width + 2 * kv_width) + 2 * query_width * context)


def _head_flops(config: ModelConfig) -> int:
    """For one position."""
    hidden = config.width**2 if config.head_hidden != "none" else 0
    projection = 0 if config.head == "none" else config.head_outputs * config.width
    return 0 if config.head == "none" else 2 * (hidden + projection)


def _stack(config: ModelConfig, layers: int, *, crosses: bool) -> int:
    """Blocks and norms."""
    sandwich = config.norm_placement == "sandwich"
    sublayers = 3 if crosses else 2
    attentions = _attention(config) * (2 if crosses else 1)
    qk_norms = 2 * _norm(config, config.head_width) if config.qk_norm == "head" else 0
    norms = sublayers * (2 if sandwich else 1) * _norm(config, config.width)
    final = 0 if config.norm_placement == "post" else _norm(config, config.width)
    embedding = _norm(config, config.width) if config.embedding_norm else 0
    absent = 0 if config.norm_first_attention else _norm(config, config.width)
    return layers * (attentions + qk_norms + _mlp(config) + norms) + final + embedding - absent


def _attention(config: ModelConfig) -> int:
    query_width, kv_width = config.heads * config.head_width, config.kv_heads * config.head_width
    weights = config.width * (2 * query_width + 2 * kv_width)
    qkv_biases = query_width + 2 * kv_width if config.qkv_bias else 0
    return weights + qkv_biases + (config.width if config.attention_output_bias else 0)


def _mlp(config: ModelConfig) -> int:
    matrices = _mlp_matrices(config)
    biases = (matrices - 1) * config.mlp_width + config.width if config.mlp_bias else 0
    return matrices * config.width * config.mlp_width + biases


def _mlp_matrices(config: ModelConfig) -> int:
    return 3 if config.mlp == "gated" else 2


def _norm(config: ModelConfig, width: int) -> int:
    return width * (2 if config.norm == "layernorm" else 1)


def _head(config: ModelConfig) -> int:
    hidden = 0
    if config.head_hidden != "none":
        hidden = config.width**2 + (config.width if config.head_hidden_bias else 0)
        hidden += _norm(config, config.width) if config.head_hidden == "activation_norm" else 0
    if config.head == "none":
        return hidden
    biases = config.head_outputs if config.head_bias else 0
    tied = config.head == "lm" and config.tied_embeddings
    return hidden + biases + (0 if tied else config.head_outputs * config.width)
