"""How much memory this process holds and has held, in bytes."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil
import torch

# getrusage counts in KiB on Linux and in bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def current_bytes(device: torch.device) -> int:
    """Memory in use now: of the card on CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was ever in use: of the card on CUDA, of the process (since its start) otherwise.

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
    """Count a card's peak from now on; a process's cannot be counted anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says by `error` that an allocation failed (on a CPU there is no class for it)."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
