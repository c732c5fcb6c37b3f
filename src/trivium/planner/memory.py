"""How many bytes one training step needs, from the model's config alone (a simple estimate, without torch).

What is in memory at the fullest moment, the start of a backward pass:
  weights       4 bytes a parameter, and under 16-bit autocast a 2-byte copy of every matrix of the blocks
  gradients     4 bytes a trainable parameter (an earlier micro-batch has left them)
  optimizer     8 bytes a trainable parameter: AdamW's two moments
  activations   what autograd keeps of the forward pass, counted tensor by tensor below for the block of
                `models/transformer.py`, and the temporaries of the widest backward pass of one block
  logits        the buffers of the chunked cross-entropy (`training/cross_entropy.py`): a chunk of logits, the gradients
                of the head and of the hidden states
  framework     the process with torch loaded, before any model exists
  allocator     holes between blocks: the C library is told to keep freed memory for the next step
                (`runtime.py`), and cannot always place a block of another size there

Simple, since all of these are taken to be at their largest together, the machine is a CPU, and the holes are a fixed
share of the rest. Invariants its tests check: what autograd keeps is predicted to the byte for decoders and encoders
of the usual shapes, and within 10 % for encoder-decoders (whose source and target are both taken to be T long) and for
biases by distance; the peak of a real process is met within 10 % without holes and within 25 % with them.

Letters as in `models/config.py`: B rows, T positions, D width, H heads, K key/value heads, N head width, F MLP width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.runtime import Precision

FP32 = 4
INT64 = 8
# Resident size of a process that has imported torch and multiplied once (torch 2.13 for CPU, Linux).
FRAMEWORK_BYTES = 320 << 20
# Holes as a share of what the step itself needs: 0.2 to 0.7 was measured with glibc, for 1 to 30 M parameters.
HOLES = 0.4
# The chunked cross-entropy's own sizes; its test keeps them equal to those in `training/cross_entropy.py`.
LOGITS_BYTES = 32 << 20
SOFTMAX_BYTES = 2 << 20
MIN_CHUNK_TOKENS = 256
MAX_FP16_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one training step, by what they hold."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    framework_bytes: int
    allocator_bytes: int

    @property
    def peak_bytes(self) -> int:
        """All of them together."""
        return sum(getattr(self, item.name) for item in fields(self))

    def to_dict(self) -> dict[str, int]:
        """The parts and `peak_bytes`, ready for JSON."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def estimate(
    config: ModelConfig,
    *,
    rows_per_micro_batch: int,
    sequence_length: int,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    cross_entropy_chunk_tokens: int = 0,
    packed_documents: bool = False,
    trainable_parameters: int | None = None,
    framework_bytes: int = FRAMEWORK_BYTES,
) -> MemoryPlan:
    """The plan of training `config` on micro-batches of B x T tokens; ranks need as much each.

    `packed_documents`: rows hold several documents, and a mask keeps them apart. `trainable_parameters`: how many are
    trained (None: all). Other arguments as in `TrainingSettings`.
    """
    tokens = rows_per_micro_batch * sequence_length
    trainable = num_parameters(config) if trainable_parameters is None else trainable_parameters
    copies = 0 if precision == "fp32" else 2 * _matrix_parameters(config)
    kept = kept_activation_bytes(
        config,
        rows_per_micro_batch=rows_per_micro_batch,
        sequence_length=sequence_length,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        packed_documents=packed_documents,
    )
    temporaries = _backward_bytes(config, tokens, precision)
    if gradient_checkpointing:
        temporaries += _block_bytes(config, rows_per_micro_batch, sequence_length, precision)
    parts = {
        "weights_bytes": FP32 * num_parameters(config) + copies,
        "gradients_bytes": FP32 * trainable,
        "optimizer_bytes": 2 * FP32 * trainable,
        "activations_bytes": kept + temporaries,
        "logits_bytes": _logits_bytes(config, tokens, precision, cross_entropy_chunk_tokens),
    }
    return MemoryPlan(**parts, framework_bytes=framework_bytes, allocator_bytes=int(HOLES * sum(parts.values())))


def fits(plan: MemoryPlan, available_bytes: int) -> bool:
    """Whether the plan's peak is at most `available_bytes`."""
    return plan.peak_bytes <= available_bytes


def kept_activation_bytes(
    config: ModelConfig,
    *,
    rows_per_micro_batch: int,
    sequence_length: int,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    packed_documents: bool = False,
) -> int:
    """What the forward pass leaves for the backward pass, copies of weights excluded, up to the hidden states."""
    tokens = rows_per_micro_batch * sequence_length
    item = _item_bytes(precision)
    per_block = tokens * config.width * FP32
    if not gradient_checkpointing:
        per_block = _block_bytes(config, rows_per_micro_batch, sequence_length, precision)
    stacks = 2 if config.kind == "encoder-decoder" else 1
    total = (config.layers + config.decoder_layers) * per_block + stacks * tokens * INT64
    if not gradient_checkpointing:
        total += config.decoder_layers * _cross_bytes(config, rows_per_micro_batch, sequence_length, item)
    if config.norm_placement != "post":
        total += stacks * (tokens * config.width * FP32 + _statistics_bytes(config, tokens))
    if config.embedding_norm:
        total += stacks * (tokens * config.width * FP32 + _statistics_bytes(config, tokens))
    if config.dropout:
        total += tokens * config.width * FP32
    positions = tokens if packed_documents else sequence_length
    if config.positions == "rotary":
        total += 2 * positions * config.head_width * item
    elif config.positions == "learned":
        total += positions * INT64
    if config.positions == "relative":
        total += stacks * sequence_length**2 * INT64  # the buckets
    elif config.positions == "alibi":
        total += stacks * config.heads * sequence_length**2 * item * (rows_per_micro_batch if packed_documents else 1)
    elif packed_documents and not config.attention_dropout:  # unfused attention adds the mask and forgets it
        total += rows_per_micro_batch * sequence_length**2 * item
    return total


def _item_bytes(precision: Precision) -> int:
    """Bytes of one number in what matrix products read and write."""
    return FP32 if precision == "fp32" else 2


def _matrix_parameters(config: ModelConfig) -> int:
    """Parameters in the matrices of all blocks."""
    attention = 2 * config.width * config.head_width * (config.heads + config.kv_heads)
    block = attention + (3 if config.mlp == "gated" else 2) * config.width * config.mlp_width
    return config.layers * block + config.decoder_layers * (block + attention)


def _statistics_bytes(config: ModelConfig, tokens: int) -> int:
    """A norm keeps the inverse deviation of each position, and a LayerNorm its mean."""
    return tokens * FP32 * (2 if config.norm == "layernorm" else 1)


def _block_bytes(config: ModelConfig, rows: int, length: int, precision: Precision) -> int:
    """What one block keeps."""
    tokens, item = rows * length, _item_bytes(precision)
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
    return residual + read + _attention_bytes(config, rows, length, item) + mlp + dropout


def _cross_bytes(config: ModelConfig, rows: int, length: int, item: int) -> int:
    """What cross-attention adds to a block: a norm, what it and the projections of the source read, the attention."""
    tokens = rows * length
    norm = tokens * config.width * FP32 + _statistics_bytes(config, tokens)
    fused = config.model_copy(update={"positions": "none"})  # no bias by distance
    return norm + tokens * config.width * item + _attention_bytes(fused, rows, length, item)


def _attention_bytes(config: ModelConfig, rows: int, length: int, item: int) -> int:
    """Queries, keys, values, output; SDPA also keeps a number for each query, and without fusion all scores thrice."""
    tokens = rows * length
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    scores = rows * config.heads * length**2
    if config.qk_norm == "head":  # what is normed, and a deviation for each head
        heads = config.heads + config.kv_heads
        return _attention_bytes(config.model_copy(update={"qk_norm": "none"}), rows, length, item) + (
            tokens * heads * FP32 * (config.head_width + 1)
        )
    if config.attention_softcap:  # the capped scores and the probabilities
        return tokens * (2 * query + 2 * key) * item + 2 * FP32 * scores
    if config.positions == "relative" and not config.attention_dropout:  # no fused kernel gives the bias's gradient
        return item * tokens * query + FP32 * (3 * tokens * query + scores)
    if config.attention_dropout:
        return tokens * query * item + 3 * FP32 * (tokens * query + scores)
    by_blocks = item != FP32  # `models/block_attention.py`
    return tokens * (2 * query + 2 * key) * item + (0 if by_blocks else tokens * config.heads * FP32)


def _backward_bytes(config: ModelConfig, tokens: int, precision: Precision) -> int:
    """Temporaries of a block's backward pass: gradients of two inner tensors of the MLP, and of the stream twice."""
    return 2 * tokens * (config.mlp_width * _item_bytes(precision) + config.width * FP32)


def _logits_bytes(config: ModelConfig, tokens: int, precision: Precision, chunk_tokens: int) -> int:
    """Buffers of the chunked cross-entropy over V ids."""
    item, vocabulary, width = _item_bytes(precision), config.vocab_size, config.width
    chunk = chunk_tokens or max(MIN_CHUNK_TOKENS, LOGITS_BYTES // (vocabulary * item))
    if precision == "fp16" and not chunk_tokens:
        chunk = min(chunk, MAX_FP16_CHUNK_TOKENS)
    total = min(chunk, tokens) * vocabulary * item + vocabulary * width * FP32 + 2 * tokens * width * item
    if item != FP32:  # the head's cast copy, one chunk's share of its gradient, and a block of scores in fp32
        total += 2 * vocabulary * width * item + max(SOFTMAX_BYTES, vocabulary * FP32)
    return total
