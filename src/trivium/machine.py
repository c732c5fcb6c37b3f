"""What this machine is and how fast it is: read from the system, and measured in a few seconds.

The measured rates are what planning and utilisation are told against: the best of several repeats of torch's
own matrix product and of one pass over memory much larger than the caches. They are ceilings that a program
can reach here and now, not the maker's figures. Invariant (tested): a rate is what (work / time) says for a
known function.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Instruction sets that decide how fast a model runs here.
TELLING_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
)
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "pydantic", "transformers", "datasets")


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    memory_bytes: int
    capability: str
    """CUDA compute capability, such as `9.0`."""


@dataclass(frozen=True)
class MachineFacts:
    """What the system says of itself."""

    system: str
    processor: str
    flags: tuple[str, ...]
    """Those of `TELLING_FLAGS` that the processor has."""
    physical_cores: int
    usable_cores: int
    """What this process may use: affinity and container limits counted."""
    threads: int
    """Threads torch computes with."""
    memory_bytes: int
    """Memory this process may use: container limits counted."""
    available_bytes: int
    """Memory that is free now."""
    disk_free_bytes: int
    """Free disk in the current directory."""
    gpus: tuple[Gpu, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class MachineSpeed:
    """Measured ceilings of one device; a rate that the device does not offer is None."""

    device: str
    fp32_gflops: float
    """Matrix product in fp32, 1e9 floating-point operations per second."""
    bf16_gflops: float
    """The same in bf16."""
    int8_gops: float | None
    """The same in int8 with int32 sums."""
    read_gb_per_s: float
    """Reading memory much larger than the caches, 1e9 bytes per second."""


def cpu_flags() -> tuple[str, ...]:
    """The processor's telling instruction sets; empty where the system does not list them."""
    words = set(_cpuinfo("flags", "Features").split())
    return tuple(flag for flag in TELLING_FLAGS if flag in words)


def cpu_vendor() -> str:
    """`GenuineIntel`, `AuthenticAMD`, ...; empty where the system does not say."""
    return _cpuinfo("vendor_id")


def has_fast_bf16() -> bool:
    """True when the processor multiplies bf16 in hardware; elsewhere bf16 is slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def usable_cores() -> int:
    """Cores this process may use: affinity, then the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def memory_limit_bytes() -> int:
    """Memory this process may use: the machine's, or the container's limit when that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = _first_line(Path("/sys/fs/cgroup/memory.max"))
    return min(total, int(limit)) if limit.isdecimal() else total


def describe_machine() -> MachineFacts:
    """Read what the system says; nothing is measured."""
    import psutil
    import torch

    versions = {"python": platform.python_version()}
    for package in ("trivium", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return MachineFacts(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_cpuinfo("model name") or platform.processor() or platform.machine(),
        flags=cpu_flags(),
        physical_cores=psutil.cpu_count(logical=False) or usable_cores(),
        usable_cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory_limit_bytes(),
        available_bytes=int(psutil.virtual_memory().available),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=tuple(Gpu(g.name, int(g.total_memory), f"{g.major}.{g.minor}") for g in gpus),
        versions=versions,
    )


def measure_machine(seconds: float = 6.0, device: str = "cpu") -> MachineSpeed:
    """Measure one device's ceilings in about `seconds`, with the threads and settings torch has now."""
    import torch

    place = torch.device(device)
    share = seconds / 4
    try:
        int8: float | None = _best_product(torch.int8, place, share) / 1e9
    except (RuntimeError, AttributeError):  # a build of torch, or a device, without it
        int8 = None
    return MachineSpeed(
        device=device,
        fp32_gflops=_best_product(torch.float32, place, share) / 1e9,
        bf16_gflops=_best_product(torch.bfloat16, place, share) / 1e9,
        int8_gops=int8,
        read_gb_per_s=_best_read(place, share),
    )


def peak_product_flops(device: str, precision: str, seconds: float = 0.5) -> float | None:
    """Measured ceiling of matrix products in FLOP/s, against which utilisation is told; None where there is none.

    `precision` is `fp32`, `bf16` or `fp16`. Draws nothing from torch's random generator.
    """
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        return _best_product(dtypes[precision], torch.device(device), seconds)
    except RuntimeError:  # a precision that the device does not offer
        return None


def best_seconds(work: Callable[[], object], budget: float) -> float:
    """The shortest of the repeats of `work` that fit into `budget` seconds (one at least, after one to warm up)."""
    work()
    best = float("inf")
    end = time.perf_counter() + budget
    while best == float("inf") or time.perf_counter() + best < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _best_product(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Best rate, in operations per second, of n x n products of growing n, as far as the time allows."""
    import torch

    sizes = (1024, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    generator = torch.Generator(device).manual_seed(0)  # of its own: the run's random numbers are not touched
    rate, end = 0.0, time.perf_counter() + seconds
    for n in sizes:
        numbers = torch.randint(-100, 100, (2, n, n), generator=generator, device=device)
        left, right = (numbers if dtype == torch.int8 else numbers / 100).to(dtype)
        multiply = torch._int_mm if dtype == torch.int8 else torch.matmul

        def work(
            multiply: Callable[..., object] = multiply, left: torch.Tensor = left, right: torch.Tensor = right
        ) -> None:
            multiply(left, right)
            _wait(device)

        operations = 2.0 * n**3
        if rate and 2 * operations / rate > end - time.perf_counter():
            break
        rate = max(rate, operations / best_seconds(work, seconds / 6))
    return rate


def _best_read(device: torch.device, seconds: float) -> float:
    """Best rate of summing a large array, in 1e9 bytes per second."""
    import torch

    num_bytes = 1 << 30 if device.type == "cuda" else min(1 << 28, memory_limit_bytes() // 16)
    numbers = torch.ones(num_bytes // 4, device=device)

    def work() -> None:
        numbers.sum()
        _wait(device)

    return num_bytes / best_seconds(work, seconds / 2) / 1e9


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given (a processor already has)."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _first_line(path: Path) -> str:
    """The first line of a system file, empty where there is none."""
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""


def _cpuinfo(*names: str) -> str:
    """What the system says of its first processor under one of `names`; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() in names), "")
