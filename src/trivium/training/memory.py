"""How much memory this process holds and has held, in bytes; and how training keeps to its plan.

On a CPU the C library keeps freed memory for the next tensor, which is faster than asking for it anew, but what it
cannot use again grows from step to step. A `Ceiling` looks at the process's size at the end of every block, forward
and backward, and gives freed pages back once the plan is exceeded. The plan has room for the usual holes
(`planner/allocator.py`), so that this is rare; and the less it helps, the rarer it is tried again.

Invariant its test checks: a process that is told a limit stays near it, with the same numbers as without, bit for bit.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trivium.runtime import give_back_freed_memory

# getrusage counts in KiB on Linux and in bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_PAGE_BYTES = resource.getpagesize()
# By this share a process may exceed its plan, which is how well plans are met: giving back costs time.
_TOLERANCE = 1 / 20
# By this share of the plan it must grow before giving back is tried again.
_GROWTH = 1 / 50


def current_bytes(device: torch.device) -> int:
    """Memory in use now: of the card on CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `restart_peak`, or else ever: of the card on CUDA, of the process otherwise.

    Linux is asked for the high-water mark of this program alone: `ru_maxrss` there begins with that of the process
    which started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def restart_peak(device: torch.device) -> None:
    """Count the peak from now on (of a process: where the system allows it, as Linux does)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch says by `error` that an allocation failed (on a CPU there is no class for it)."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


class Ceiling:
    """The size a process is to keep to."""

    def __init__(self, planned_bytes: int) -> None:
        self.most_bytes = int((1 + _TOLERANCE) * planned_bytes)
        """What is not exceeded before anything is given back."""
        self.given_back = 0
        """How often freed memory was given back."""
        self._limit = self.most_bytes

    def keep(self) -> None:
        """Give freed memory back, if the process has outgrown the limit."""
        if current_bytes(torch.device("cpu")) <= self._limit:
            return
        give_back_freed_memory()
        self.given_back += 1
        left = current_bytes(torch.device("cpu"))
        self._limit = max(self.most_bytes, left + int(_GROWTH * self.most_bytes))

    def _after_block(self, block: nn.Module, inputs: object, output: object) -> None:
        """A forward hook, which also looks in when the gradient of the block's output is known."""
        self.keep()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: self.keep())  # type: ignore[no-untyped-call]

    def watch(self, blocks: Iterable[nn.Module]) -> list[RemovableHandle]:
        """Look in at the end of each block's every pass, forward and backward, until the handles are removed."""
        return [block.register_forward_hook(self._after_block) for block in blocks]
