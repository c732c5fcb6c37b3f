"""What a process can do for its own speed, once, before it computes. Nothing here changes a result's precision.

Allocator. glibc gives large blocks back to the kernel when they are freed and gets them anew, page by page and
zeroed, at the next step. Told to keep them, a training step spends that time on arithmetic.

fp32 products. torch sends them to MKL, whose fast path is closed on AMD processors; oneDNN's is open. torch uses
oneDNN for them only in its "medium" precision, which is true fp32 on processors without matrix tiles (AMX) and bf16 on
those with: so it is chosen only where a product, computed and compared, shows that nothing is lost.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from trivium.runtime import Runtime

# <malloc.h>: parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Blocks smaller than this come from memory that is kept; an older glibc accepts half of its heap size at most.
_MMAP_THRESHOLDS = (1 << 30, 32 << 20)
_KEEP_BYTES = (1 << 31) - 1
# bf16 keeps 8 bits of a number: with it the relative error of the probe is about 1e-3, with fp32 about 1e-7.
_FP32_PROBE_ERROR = 1e-5


def prepare_machine(runtime: Runtime) -> list[str]:
    """Set threads, allocator and the library for fp32 products; what was done, in words."""
    done = []
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
        done.append(f"{runtime.threads} compute threads")
    if runtime.torch_device().type == "cpu":
        if keep_freed_memory():
            done.append("freed memory is kept for the next step")
        if use_onednn_for_fp32():
            done.append("fp32 products by oneDNN")
    return done


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; False where the C library is another."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    raised = any(mallopt(_M_MMAP_THRESHOLD, threshold) == 1 for threshold in _MMAP_THRESHOLDS)
    return raised and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES) == 1


def use_onednn_for_fp32(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Send fp32 products to oneDNN where that is faster (AMD) and loses nothing; whether it was done."""
    flags, vendor = _processor(cpuinfo)
    if vendor != "AuthenticAMD" or any(flag.startswith("amx") for flag in flags):
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if fp32_product_error() <= _FP32_PROBE_ERROR:
        return True
    torch.set_float32_matmul_precision(before)
    return False


def fp32_product_error() -> float:
    """Largest error of an fp32 product on this machine as it is set now, relative to the largest result."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 384, generator=generator)
    b = torch.randn(384, 512, generator=generator)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())


def _processor(cpuinfo: Path) -> tuple[frozenset[str], str]:
    """(flags, vendor) of the first processor; empty where the system does not say."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset(), ""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return frozenset(facts.get("flags", "").split()), facts.get("vendor_id", "")
