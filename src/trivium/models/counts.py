"""How many parameters a model has and how many operations it needs, from its config alone (no torch).

FLOPs count each multiplication and each addition of a matrix product, 2 per weight and token; norms, activations,
softmax, rotations and the embedding look-up are left out, as is usual (Kaplan et al., 2020, table 1). Attention is
counted in full: that causal scores are half masked is the kernel's affair. A backward pass costs twice a forward one.

Invariant its test checks: the counts equal those of the built model and of torch's own FLOP counter, exactly.
"""

from __future__ import annotations

from trivium.models.config import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """All parameters; a table that is both embedding and head counts once."""
    final_norms = 1 if config.norm_placement == "pre" else 0
    blocks = config.layers * (_attention(config) + _mlp(config) + 2 * _norm(config))
    return num_embedding_parameters(config) + blocks + final_norms * _norm(config) + _head(config)


def num_embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the tables of tokens and of learned positions; an untied head is not among them."""
    positions = config.max_positions if config.positions == "learned" else 0
    return (config.vocab_size + positions) * config.width


def num_non_embedding_parameters(config: ModelConfig) -> int:
    """Parameters outside the tables and outside the head: what scaling laws call N."""
    return num_parameters(config) - num_embedding_parameters(config) - _head(config)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Forward FLOPs for one token that attends to `context` positions, logits included."""
    query_width, kv_width = config.heads * config.head_width, config.kv_heads * config.head_width
    projections = config.width * (2 * query_width + 2 * kv_width)
    mlp = config.width * config.mlp_width * _mlp_matrices(config)
    attention = 2 * query_width * context  # scores, and the weighted sum of values
    return 2 * (config.layers * (projections + mlp + attention) + config.vocab_size * config.width)


def training_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of forward and backward for one token of a row of `context` positions, nothing recomputed."""
    return 3 * flops_per_token(config, context)


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


def _norm(config: ModelConfig) -> int:
    return config.width * (2 if config.norm == "layernorm" else 1)


def _head(config: ModelConfig) -> int:
    return 0 if config.tied_embeddings else config.vocab_size * config.width
