"""What a forward pass leaves for its backward pass, tensor by tensor, from the model's config alone (no torch).

The counts follow `models/transformer.py` as autograd runs it: a tensor counts once, however many operations keep it,
and what fused attention, the written-out norm and the gated product spare is not counted. Recomputation (gradient
checkpointing) leaves one tensor a block, and while one block is computed again, what that block keeps.

Invariants its test checks: equal to the bytes of the storages that autograd really keeps, to the byte for decoders and
encoders of the usual shapes; within 10 % for encoder-decoders and for biases by distance.

Letters as in `models/config.py`: B rows, T positions, S positions of a source, D width, H heads, K key/value heads,
N head width, F MLP width.
"""

from __future__ import annotations

from trivium.models.config import ModelConfig
from trivium.runtime import Precision

FP32 = 4
INT64 = 8


def item_bytes(precision: Precision) -> int:
    """Bytes of one number in what matrix products read and write."""
    return FP32 if precision == "fp32" else 2


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters in the matrices of all blocks."""
    attention = 2 * config.width * config.head_width * (config.heads + config.kv_heads)
    block = attention + (3 if config.mlp == "gated" else 2) * config.width * config.mlp_width
    return config.layers * block + config.decoder_layers * (block + attention)


def kept_activation_bytes(
    config: ModelConfig,
    *,
    rows_per_micro_batch: int,
    sequence_length: int,
    source_length: int = 0,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    packed_documents: bool = False,
) -> int:
    """What is kept up to the hidden states, copies of weights excluded; `source_length` 0: as long as the target."""
    rows, item = rows_per_micro_batch, item_bytes(precision)
    stacks = [(config.layers, sequence_length)]
    if config.kind == "encoder-decoder":
        stacks = [(config.layers, source_length or sequence_length), (config.decoder_layers, sequence_length)]
    total = 0
    for layers, length in stacks:
        per_block = rows * length * config.width * FP32
        if not gradient_checkpointing:
            per_block = block_bytes(config, rows, length, precision)
        total += layers * per_block + _around_blocks(config, rows, length, item, packed_documents)
    if config.kind == "encoder-decoder" and not gradient_checkpointing:
        source = source_length or sequence_length
        total += config.decoder_layers * _cross_bytes(config, rows, sequence_length, source, item)
    return total


def widest_block_bytes(config: ModelConfig, rows: int, length: int, source_length: int, precision: Precision) -> int:
    """What the block that keeps most keeps while it is computed again."""
    if config.kind != "encoder-decoder":
        return block_bytes(config, rows, length, precision)
    source = source_length or length
    crossing = _cross_bytes(config, rows, length, source, item_bytes(precision))
    return max(
        block_bytes(config, rows, source, precision),
        block_bytes(config, rows, length, precision) + crossing,
    )


def block_bytes(config: ModelConfig, rows: int, length: int, precision: Precision) -> int:
    """What one block without cross-attention keeps."""
    tokens, item = rows * length, item_bytes(precision)
    residual = 2 * (tokens * config.width * FP32 + _statistics_bytes(config, tokens))
    if config.residual == "parallel":  # both norms read the same
        residual -= tokens * config.width * FP32
    if config.norm_placement == "sandwich":
        residual += 2 * (tokens * config.width * FP32 + _statistics_bytes(config, tokens))
    # What the linear layers read: cast once where it comes from a norm, and once by each layer where it does not.
    readers = 2 if config.norm_placement != "post" or item == FP32 else 3 + (2 if config.mlp == "gated" else 1)
    read = readers * tokens * config.width * item
    if config.mlp == "gated":
        inner_tensors = 3
    else:
        inner_tensors = 1 if config.activation == "relu" else 2
    mlp = inner_tensors * tokens * config.mlp_width * item
    dropout = 2 * tokens * config.width * item if config.dropout else 0
    return residual + read + _attention_bytes(config, rows, length, length, item) + mlp + dropout


def _around_blocks(config: ModelConfig, rows: int, length: int, item: int, packed_documents: bool) -> int:
    """What one stack keeps outside of its blocks: embeddings, positions, masks, the final norm."""
    tokens = rows * length
    total = tokens * INT64
    normed = tokens * config.width * FP32 + _statistics_bytes(config, tokens)
    total += normed if config.norm_placement != "post" else 0
    total += normed if config.embedding_norm else 0
    total += tokens * config.width * FP32 if config.dropout else 0
    positions = tokens if packed_documents else length
    if config.positions == "rotary":
        total += 2 * positions * config.head_width * item
    elif config.positions == "learned":
        total += positions * INT64
    if config.positions == "relative":
        total += length**2 * INT64  # the buckets
    elif config.positions == "alibi":
        total += config.heads * length**2 * item * (rows if packed_documents else 1)
    elif packed_documents and not config.attention_dropout:  # unfused attention adds the mask and forgets it
        total += rows * length**2 * item
    return total


def _statistics_bytes(config: ModelConfig, tokens: int) -> int:
    """A norm keeps the inverse deviation of each position, and a LayerNorm its mean."""
    return tokens * FP32 * (2 if config.norm == "layernorm" else 1)


def _cross_bytes(config: ModelConfig, rows: int, length: int, source_length: int, item: int) -> int:
    """What cross-attention adds to a block: a norm, what it and the projections of the source read, the attention."""
    tokens = rows * length
    norm = tokens * config.width * FP32 + _statistics_bytes(config, tokens)
    fused = config.model_copy(update={"positions": "none"})  # no bias by distance
    return norm + tokens * config.width * item + _attention_bytes(fused, rows, length, source_length, item)


def _attention_bytes(config: ModelConfig, rows: int, length: int, keys: int, item: int) -> int:
    """Queries, keys, values, output; SDPA also keeps a number for each query, and without fusion all scores thrice."""
    tokens, sources = rows * length, rows * keys
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    scores = rows * config.heads * length * keys
    if config.qk_norm == "head":  # what is normed, and a deviation for each head
        heads = config.heads + config.kv_heads
        return _attention_bytes(config.model_copy(update={"qk_norm": "none"}), rows, length, keys, item) + (
            tokens * heads * FP32 * (config.head_width + 1)
        )
    if config.attention_softcap:  # the capped scores and the probabilities
        return (tokens * 2 * query + sources * 2 * key) * item + 2 * FP32 * scores
    if config.positions == "relative" and not config.attention_dropout:  # no fused kernel gives the bias's gradient
        return item * tokens * query + FP32 * (tokens * query + 2 * sources * query + scores)
    if config.attention_dropout:
        return tokens * query * item + FP32 * (tokens * query + 2 * sources * query + 3 * scores)
    by_blocks = item != FP32  # `models/block_attention.py`
    return (tokens * 2 * query + sources * 2 * key) * item + (0 if by_blocks else tokens * config.heads * FP32)
