"""Where and how this process computes: decided once by the command line and passed along, never at import.

`choose_runtime` decides and checks; `prepare_process` then tells torch and the allocator, once, at the start
of a process that will compute. Invariant (tested): the faster fp32 products it allows are as exact as the
ordinary ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trivium.errors import UserError
from trivium.machine import cpu_vendor, has_fast_bf16

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]

# glibc's `mallopt` parameters (malloc.h), and what they are set to: keep freed blocks of up to 1 GiB (an older glibc
# takes no more than 32 MiB), and up to 2 GiB in all.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MMAP_BYTES, _TRIM_BYTES = (1 << 30, 32 << 20), (1 << 31) - 1
# A product whose largest error, relative to the largest result, exceeds this was not computed in fp32 (bf16: 1e-3).
_FP32_ERROR = 1e-5


@dataclass(frozen=True)
class Runtime:
    """Device, precision, seed, threads, and this process's place among its peers."""

    device: str = "cpu"
    """`cpu`, `cuda`, or `cuda:N`."""
    precision: Precision = "fp32"
    """Precision of matrix products; weights and optimizer state stay fp32 in training."""
    seed: int = 0
    """The seed every random draw of the run is derived from."""
    threads: int = 0
    """Compute threads of this process (0: as many as torch chooses)."""
    rank: int = 0
    """This process's number among `world_size`."""
    world_size: int = 1
    """How many processes train together (data parallel, started by `torchrun`)."""

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def torch_device(self) -> torch.device:
        """The torch device of this process."""
        import torch

        return torch.device(self.device)


def world_from_environment() -> tuple[int, int]:
    """(rank, world size) as `torchrun` sets them; (0, 1) in a plain process."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def choose_runtime(
    device: str = "auto", precision: Precision | Literal["auto"] = "auto", seed: int = 0, threads: int = 0
) -> Runtime:
    """The runtime asked for, with each `auto` decided from the hardware. Raises `UserError` for what is absent.

    `auto` device: a GPU when torch sees one (rank N of a machine takes the N-th). `auto` precision: bf16
    where the hardware multiplies it, else fp32.
    """
    import torch

    if threads < 0:
        raise UserError(f"threads: must be 0 (torch chooses) or more, not {threads}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or device in ("cpu:", "cuda:"):
        raise UserError(f"device: must be auto, cpu, cuda or cuda:N, not {device!r}")
    if kind == "cuda":
        count = torch.cuda.device_count()
        index = int(number) if number else int(os.environ.get("LOCAL_RANK", "0"))
        if index >= count:
            raise UserError(f"device: {device} asks for GPU {index}, and torch sees {count} here; use device=cpu")
        device = f"cuda:{index}"
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else has_fast_bf16()
        precision = "bf16" if fast else "fp32"
    rank, world_size = world_from_environment()
    return Runtime(device, precision, seed, threads, rank, world_size)


def prepare_process(runtime: Runtime) -> list[str]:
    """Make this process ready to compute, once, before it does; what was done, in words."""
    import torch

    done = []
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
        done.append(f"{runtime.threads} compute threads")
    if runtime.torch_device().type == "cuda":
        torch.cuda.set_device(runtime.torch_device())
    else:
        done += ["freed memory is kept for the next step"] if keep_freed_memory() else []
        done += ["fp32 products by oneDNN"] if use_onednn_for_fp32() else []
    return done


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor; True when that was done (False with another C library).

    Else each large activation is mapped, zeroed page by page and unmapped anew at every step.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    raised = any(mallopt(_MMAP_THRESHOLD, number) == 1 for number in _MMAP_BYTES)
    return raised and mallopt(_TRIM_THRESHOLD, _TRIM_BYTES) == 1


def give_back_freed_memory(everything: bool = False) -> bool:
    """Give the system what lies freed between blocks in use; True when there was some (glibc only).

    What lies freed behind all of them stays, unless `everything` is to go: the next pass needs it at once. The pages
    given back are mapped anew, and zeroed, when they are needed again.
    """
    import ctypes

    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim.argtypes = [ctypes.c_size_t]
    return bool(trim(0 if everything else _TRIM_BYTES) == 1)


def use_onednn_for_fp32() -> bool:
    """Send fp32 products to oneDNN where that is faster and as exact; True when that was done.

    On AMD processors MKL takes a slow path, and oneDNN more than doubles it. The setting (`medium`) permits bf16
    inside as well, which processors with matrix tiles then use; so the outcome is measured, not guessed.
    """
    import torch

    if cpu_vendor() != "AuthenticAMD":
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    left = torch.linspace(1.0, 1.9, 256 * 384).view(256, 384)  # no random numbers are drawn: seeds stay untouched
    right = left.flip(0).reshape(384, 256)
    exact = left.double() @ right.double()
    error = float(((left @ right).double() - exact).abs().max() / exact.abs().max())
    if error > _FP32_ERROR:
        torch.set_float32_matmul_precision(before)
    return error <= _FP32_ERROR
