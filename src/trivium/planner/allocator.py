"""What lies between tensors: memory that an allocator holds and no tensor uses (no torch).

On a CPU, glibc is told to keep freed memory (`runtime.py`). It cannot always use it again: torch asks for aligned
blocks, for which glibc wants a hole some bytes larger than the block, so the hole that a tensor leaves is too small for
the next tensor of the same size. How much lies idle in the end differs by some MB from run to run, and was measured
(docs/planning_measured.md). It is a share
  in fp32        of activations and logits, nearly all of which have the size of the residual stream; larger where
                 queries and keys are rotated, since the turned ones are as large as those they replace; and of
                 gradients, between which activations must find room
  in 16 bits     of activations alone: tensors of half the size fit into the holes of whole ones, and the casts of the
                 head that the loss gives up before the backward pass leave room for much of the rest
  recomputed     larger, since as much passes through the step and less of it is kept

On CUDA, torch's caching allocator rounds each tensor up to 512 bytes and takes memory from the driver in segments: of 2
MiB for tensors up to 1 MiB, of 20 MiB up to 10 MiB, and for larger ones their size rounded up to 2 MiB. The plan adds
half a segment of both kinds and half of the rounding for each large tensor; this was not measured on a card.

Invariant (tests/benchmarks/test_planning.py): with these holes the peaks of real processes are met.
"""

from __future__ import annotations

from typing import Literal

from trivium.models.config import ModelConfig
from trivium.runtime import Precision

Device = Literal["cpu", "cuda"]

# Holes of a training step on a CPU: shares of activations (in fp32 also of logits), kept and computed again.
HOLES_FP32_ROTATED, HOLES_FP32, HOLES_16_BITS = 1.0, 0.55, 0.55
HOLES_FP32_RECOMPUTED, HOLES_16_BITS_RECOMPUTED = 1.6, 1.1
HOLES_OF_FP32_GRADIENTS = 0.15
# Without a backward pass: of what passes while texts are continued, and of activations of texts that are read whole.
INFERENCE_HOLES, READING_HOLES = 0.2, 0.8
CUDA_BLOCK, CUDA_SMALL, CUDA_LARGE = 512, 1 << 20, 10 << 20
CUDA_SMALL_SEGMENT, CUDA_LARGE_SEGMENT, CUDA_ROUNDING = 2 << 20, 20 << 20, 2 << 20


def training_holes(
    config: ModelConfig,
    precision: Precision,
    gradient_checkpointing: bool,
    *,
    activations: int,
    logits: int,
    gradients: int,
) -> int:
    """Bytes of holes that a training step on a CPU ends up with, from what it holds."""
    if precision != "fp32":
        return int((HOLES_16_BITS_RECOMPUTED if gradient_checkpointing else HOLES_16_BITS) * activations)
    share = HOLES_FP32_ROTATED if config.positions == "rotary" else HOLES_FP32
    share = HOLES_FP32_RECOMPUTED if gradient_checkpointing else share
    return int(share * (activations + logits) + HOLES_OF_FP32_GRADIENTS * gradients)


def cuda_segment_bytes(size: int) -> int:
    """What a single tensor of `size` bytes takes from the driver, when nothing is free in its cache."""
    rounded = -(-max(size, 1) // CUDA_BLOCK) * CUDA_BLOCK
    if rounded <= CUDA_SMALL:
        return CUDA_SMALL_SEGMENT
    if rounded < CUDA_LARGE:
        return CUDA_LARGE_SEGMENT
    return -(-rounded // CUDA_ROUNDING) * CUDA_ROUNDING


def cuda_idle_bytes(needed_bytes: int, largest_tensor_bytes: int = 0) -> int:
    """What is left of segments on a card that hold `needed_bytes`, when the largest tensors have that size."""
    slack = (CUDA_SMALL_SEGMENT + CUDA_LARGE_SEGMENT) // 2
    if largest_tensor_bytes >= CUDA_LARGE:
        slack += needed_bytes // largest_tensor_bytes * CUDA_ROUNDING // 2
    return min(slack, needed_bytes)
