"""Where and how a process computes, and what this machine measures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from trivium import machine
from trivium.errors import UserError
from trivium.runtime import (
    Runtime,
    choose_runtime,
    keep_freed_memory,
    prepare_process,
    use_onednn_for_fp32,
    world_from_environment,
)


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Leave torch as it was."""
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)


def worst_relative_error(multiply) -> float:
    """Of products of the sizes models have, against fp64."""
    worst = 0.0
    for rows, inner, columns in ((64, 64, 64), (256, 384, 1024), (1, 512, 512), (130, 1000, 257)):
        generator = torch.Generator().manual_seed(rows)
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        exact = left.double() @ right.double()
        worst = max(worst, float((multiply(left, right).double() - exact).abs().max() / exact.abs().max()))
    return worst


def test_faster_products_are_as_exact_as_fp32(torch_settings: None) -> None:
    torch.set_float32_matmul_precision("highest")
    ordinary = worst_relative_error(torch.matmul)
    prepare_process(Runtime())
    assert worst_relative_error(torch.matmul) < max(3e-6, 3 * ordinary)


def test_the_control_bf16_inside_is_seen() -> None:
    def in_bf16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left.bfloat16() @ right.bfloat16()).float()

    def operands_in_bf16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left.bfloat16().float() @ right.bfloat16().float()

    assert worst_relative_error(in_bf16) > 1e-3
    assert worst_relative_error(operands_in_bf16) > 1e-4


def test_products_that_are_not_exact_are_not_allowed(torch_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("highest")
    exact = torch.Tensor.__matmul__

    def inexact(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """What an AMX processor may do under `medium`: operands in bf16, sums in fp32."""
        if left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return exact(left.bfloat16().float(), right.bfloat16().float())
        return exact(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", inexact)
    monkeypatch.setattr("trivium.runtime.cpu_vendor", lambda: "AuthenticAMD")
    assert not use_onednn_for_fp32()
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.undo()
    monkeypatch.setattr("trivium.runtime.cpu_vendor", lambda: "GenuineIntel")
    assert not use_onednn_for_fp32()


def test_preparing_draws_no_random_numbers(torch_settings: None) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert "1 compute threads" in prepare_process(Runtime(threads=1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is a matter of Linux")
def test_freed_memory_is_kept() -> None:
    assert keep_freed_memory()
    # In a process of its own: after a free, the resident memory stays, so the next tensor finds its pages.
    code = (
        "import sys, psutil, torch\nfrom trivium.runtime import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "x = torch.ones(16_000_000); x = None\nsys.stdout.write(str(psutil.Process().memory_info().rss >> 20))"
    )
    resident = [
        int(subprocess.run([sys.executable, "-c", code, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "plain")
    ]
    assert resident[0] - resident[1] > 40  # the tensor has 61 MiB


@pytest.mark.parametrize("device", ["gpu", "cpu:", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(UserError, match="device"):
        choose_runtime(device)


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_runtime("cpu", "fp32", seed=3, threads=2) == Runtime("cpu", "fp32", 3, 2, 1, 2)
    assert world_from_environment() == (1, 2)
    assert not choose_runtime("cpu").is_main
    monkeypatch.setattr("trivium.runtime.has_fast_bf16", lambda: True)
    assert choose_runtime("cpu", "auto").precision == "bf16"
    monkeypatch.setattr("trivium.runtime.has_fast_bf16", lambda: False)
    assert choose_runtime("cpu", "auto").precision == "fp32"
    with pytest.raises(UserError, match="threads"):
        choose_runtime("cpu", threads=-1)


def test_the_machine_describes_itself() -> None:
    facts = machine.describe_machine()
    assert facts.usable_cores >= 1 and facts.physical_cores >= 1
    assert 0 < facts.available_bytes <= facts.memory_bytes
    assert facts.versions["torch"] == torch.__version__
    assert machine.has_fast_bf16() == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(facts.flags))


def test_containers_limits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": str(1 << 20)}
    monkeypatch.setattr(machine, "_first_line", lambda path: limits[str(path)])
    assert machine.usable_cores() <= 2
    assert machine.memory_limit_bytes() == 1 << 20
    limits.update({"/sys/fs/cgroup/cpu.max": "max 100000", "/sys/fs/cgroup/memory.max": "max"})
    assert machine.memory_limit_bytes() > 1 << 20
    assert machine.usable_cores() >= 1


def test_the_best_time_is_that_of_a_known_function() -> None:
    assert 0.01 <= machine.best_seconds(lambda: time.sleep(0.01), budget=0.2) < 0.05


def test_measured_rates_are_possible() -> None:
    speed = machine.measure_machine(seconds=0.4)
    assert 0.1 < speed.fp32_gflops < 1e6
    assert 0.01 < speed.bf16_gflops < 1e6
    assert speed.int8_gops is None or speed.int8_gops > 0.01
    assert 0.1 < speed.read_gb_per_s < 1e4
