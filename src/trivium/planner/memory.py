"""How many bytes one training step needs, from the model's config alone (no torch).

What is in memory at the fullest moment, the start of a backward pass:
  weights       4 bytes a parameter, and under 16-bit autocast a 2-byte copy of every matrix of the blocks
  gradients     4 bytes a trainable parameter (an earlier micro-batch has left them)
  optimizer     8 bytes a trainable parameter: AdamW's two moments
  activations   what autograd keeps of the forward pass (`activations.py`), and the temporaries of the widest backward
                pass of one block
  logits        of the chunked cross-entropy (`training/cross_entropy.py`) the gradients of head and hidden states, and
                a chunk of logits where that is more than the temporaries it makes room for
  framework     the process with torch loaded, before any model exists; on CUDA nothing, since a card's memory is
                counted without its context
  allocator     holes between blocks (`allocator.py`)

Simple, since these are taken to be at their largest together. Invariants its tests check: the sum without framework and
allocator is that of a real step's tensors, temporaries inside of kernels included, within 8 %; the peak of a real
process is met within 15 % (docs/planning_measured.md has the whole table).

Letters as in `models/config.py`: B rows, T positions, D width, F MLP width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.activations import (
    FP32,
    item_bytes,
    kept_activation_bytes,
    matrix_parameters,
    widest_block_bytes,
)
from trivium.planner.allocator import Device, cuda_idle_bytes, training_holes
from trivium.runtime import Precision

# Resident size of a process that has imported torch and computed once (torch 2.13 for CPU, Linux): the interpreter, the
# libraries' code that was touched, and their own buffers. Without backward passes less of it is touched.
FRAMEWORK_BYTES = 344 << 20
INFERENCE_FRAMEWORK_BYTES = 264 << 20
# Products in 16 bits are oneDNN's, whose code and generated kernels come on top of those for fp32.
ONEDNN_BYTES = 12 << 20
# The chunked cross-entropy's own sizes; its test keeps them equal to those in `training/cross_entropy.py`.
LOGITS_BYTES = 32 << 20
SOFTMAX_BYTES = 2 << 20
MIN_CHUNK_TOKENS = 256
MAX_FP16_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the fullest moment, by what they hold."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    framework_bytes: int
    allocator_bytes: int
    kv_cache_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """All of them together."""
        return sum(getattr(self, item.name) for item in fields(self))

    @property
    def tensors_bytes(self) -> int:
        """All that tensors hold: the peak without framework and allocator."""
        return self.peak_bytes - self.framework_bytes - self.allocator_bytes

    def to_dict(self) -> dict[str, int]:
        """The parts and `peak_bytes`, ready for JSON."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def estimate(
    config: ModelConfig,
    *,
    rows_per_micro_batch: int,
    sequence_length: int,
    source_length: int = 0,
    targets: int | None = None,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
    cross_entropy_chunk_tokens: int = 0,
    packed_documents: bool = False,
    trainable_parameters: int | None = None,
    device: Device = "cpu",
    framework_bytes: int | None = None,
) -> MemoryPlan:
    """The plan of training `config` on micro-batches of B x T tokens; ranks need as much each.

    `source_length`: positions of an encoder-decoder's source (0: T). `targets`: how many of the B x T positions are
    learned (None: all). `packed_documents`: rows hold several documents, and a mask keeps them apart.
    `trainable_parameters`: how many are trained (None: all). `framework_bytes`: the process so far (None:
    `FRAMEWORK_BYTES` on a CPU, 0 on CUDA). Other arguments as in `TrainingSettings`.
    """
    rows, tokens = rows_per_micro_batch, rows_per_micro_batch * max(sequence_length, source_length)
    trainable = num_parameters(config) if trainable_parameters is None else trainable_parameters
    kept = kept_activation_bytes(
        config,
        rows_per_micro_batch=rows,
        sequence_length=sequence_length,
        source_length=source_length,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        packed_documents=packed_documents,
    )
    temporaries = _backward_bytes(config, tokens, precision)
    if gradient_checkpointing:
        temporaries += widest_block_bytes(config, rows, sequence_length, source_length, precision)
    learned = rows * sequence_length if targets is None else targets
    held, passing = _cross_entropy_bytes(config, learned, precision, cross_entropy_chunk_tokens)
    parts = {
        "weights_bytes": FP32 * num_parameters(config) + autocast_bytes(config, precision),
        "gradients_bytes": FP32 * trainable,
        "optimizer_bytes": 2 * FP32 * trainable,
        "activations_bytes": kept + temporaries,
        "logits_bytes": held + max(0, passing - temporaries),
    }
    framework_bytes = _process_bytes(framework_bytes, precision, device)
    if device == "cpu":
        idle = training_holes(
            config,
            precision,
            gradient_checkpointing,
            activations=parts["activations_bytes"],
            logits=parts["logits_bytes"],
            gradients=parts["gradients_bytes"],
        )
    else:
        largest = tokens * max(config.mlp_width, config.width) * item_bytes(precision)
        idle = cuda_idle_bytes(sum(parts.values()), largest)
    return MemoryPlan(**parts, framework_bytes=framework_bytes, allocator_bytes=idle)


def fits(plan: MemoryPlan, available_bytes: int) -> bool:
    """Whether the plan's peak is at most `available_bytes`."""
    return plan.peak_bytes <= available_bytes


def _process_bytes(known: int | None, precision: Precision, device: Device) -> int:
    """The process before any tensor of a training step exists (`known`: what it already holds)."""
    if device != "cpu":
        return known or 0
    held = FRAMEWORK_BYTES if known is None else known
    return held + (ONEDNN_BYTES if held and precision != "fp32" else 0)


def autocast_bytes(config: ModelConfig, precision: Precision) -> int:
    """The copies of the blocks' matrices that 16-bit autocast makes and keeps for the length of a pass."""
    return 0 if precision == "fp32" else 2 * matrix_parameters(config)


def _backward_bytes(config: ModelConfig, tokens: int, precision: Precision) -> int:
    """Temporaries of a block's backward pass: gradients of two inner tensors of the MLP, and of the stream twice."""
    return 2 * tokens * (config.mlp_width * item_bytes(precision) + config.width * FP32)


def _cross_entropy_bytes(config: ModelConfig, targets: int, precision: Precision, chunk_tokens: int) -> tuple[int, int]:
    """Of the chunked cross-entropy over V ids: what stays for the backward pass, and what is given up before it."""
    item, vocabulary, width = item_bytes(precision), config.vocab_size, config.width
    held = vocabulary * width * FP32 + targets * width * item
    passing = min(chunk_rows(config, precision, chunk_tokens), targets) * vocabulary * item
    if item != FP32:  # hidden states and head cast, a chunk's share of its gradient, also in fp32, a block of scores
        passing += targets * width * item + vocabulary * width * (2 * item + FP32)
        passing += max(SOFTMAX_BYTES, vocabulary * FP32)
    return held, passing


def chunk_rows(config: ModelConfig, precision: Precision, chunk_tokens: int = 0) -> int:
    """How many positions' logits the chunked cross-entropy holds at a time."""
    chunk = chunk_tokens or max(MIN_CHUNK_TOKENS, LOGITS_BYTES // (config.vocab_size * item_bytes(precision)))
    if precision == "fp16" and not chunk_tokens:
        chunk = min(chunk, MAX_FP16_CHUNK_TOKENS)
    return chunk
