"""What lies between tensors: memory that an allocator holds and no tensor uses (no torch).

On a CPU, glibc is told to keep freed memory (`runtime.py`). It cannot always use it again: torch asks for aligned
blocks, for which glibc wants a hole some bytes larger than the block, so a hole that a tensor has left is too small for
the next tensor of the same size. Left alone, these holes grow to 0.2 (bf16) and up to 1.0 (fp32) of what tensors need.
Training therefore gives them back where they pass `HOLES` (`training/memory.py`); the plan is what it keeps to.

On CUDA, torch's caching allocator rounds each tensor up to 512 bytes and takes memory from the driver in segments: of 2
MiB for tensors up to 1 MiB, of 20 MiB up to 10 MiB, and for larger ones their size rounded up to 2 MiB. The plan adds
half a segment of both kinds and half of the rounding for each large tensor; this was not measured on a card.
"""

from __future__ import annotations

from typing import Literal

Device = Literal["cpu", "cuda"]

# Holes on a CPU as a share of what a training step needs: training keeps them at this.
HOLES = 0.25
# The same without a backward pass, where few blocks are kept between those that are given up.
INFERENCE_HOLES = 0.25
CUDA_BLOCK, CUDA_SMALL, CUDA_LARGE = 512, 1 << 20, 10 << 20
CUDA_SMALL_SEGMENT, CUDA_LARGE_SEGMENT, CUDA_ROUNDING = 2 << 20, 20 << 20, 2 << 20


def cuda_segment_bytes(size: int) -> int:
    """What a single tensor of `size` bytes takes from the driver, when nothing is free in its cache."""
    rounded = -(-max(size, 1) // CUDA_BLOCK) * CUDA_BLOCK
    if rounded <= CUDA_SMALL:
        return CUDA_SMALL_SEGMENT
    if rounded < CUDA_LARGE:
        return CUDA_LARGE_SEGMENT
    return -(-rounded // CUDA_ROUNDING) * CUDA_ROUNDING


def allocator_bytes(device: Device, needed_bytes: int, holes: float, largest_tensor_bytes: int = 0) -> int:
    """What `device`'s allocator holds beyond the `needed_bytes` of a step whose largest tensors have that size."""
    if device == "cpu":
        return int(holes * needed_bytes)
    slack = (CUDA_SMALL_SEGMENT + CUDA_LARGE_SEGMENT) // 2
    if largest_tensor_bytes >= CUDA_LARGE:
        slack += needed_bytes // largest_tensor_bytes * CUDA_ROUNDING // 2
    return min(slack, needed_bytes)
