"""What is set on this machine takes effect, and never costs precision."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.small import start_program, wait_for
from trivium.runtime import Runtime
from trivium.training.machine import fp32_product_error, prepare_machine, use_onednn_for_fp32

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f{}\n"


@pytest.fixture(autouse=True)
def settings_of_torch_restored() -> Iterator[None]:
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "cpuinfo",
    [
        AMD.format(" amx_bf16 amx_tile"),
        "vendor_id\t: GenuineIntel\nflags\t: fpu avx512f\n",
        "Features\t: fp asimd\n",
        "",
    ],
)
def test_other_processors_are_left_alone(cpuinfo: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert not use_onednn_for_fp32(tmp_path / "cpuinfo")
    assert not use_onednn_for_fp32(tmp_path / "absent")
    assert torch.get_float32_matmul_precision() == "highest"


def test_fp32_stays_fp32() -> None:
    use_onednn_for_fp32()
    assert fp32_product_error() < 3e-6


def test_a_lossy_path_is_seen_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe against products that were rounded to bf16, as AMX would do."""
    (tmp_path / "cpuinfo").write_text(AMD.format(""))
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a, b) if a.dtype == torch.float64 else product(a.bfloat16(), b.bfloat16()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not use_onednn_for_fp32(tmp_path / "cpuinfo")
    assert torch.get_float32_matmul_precision() == "highest"


PROGRAM = """
import json, resource, sys
import torch
from trivium.runtime import Runtime
from trivium.training.machine import prepare_machine

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
done = prepare_machine(Runtime(threads=1))
faults()
open(sys.argv[1], "w").write(json.dumps([first, faults(), done, torch.get_num_threads()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    wait_for([start_program(tmp_path / "program.py", str(tmp_path / "out"))])
    before, after, done, threads = json.loads((tmp_path / "out").read_text())
    if "freed memory is kept for the next step" not in done:
        pytest.skip("the C library is not glibc")
    assert after < before / 10, (before, after)
    assert threads == 1


def test_cards_need_none_of_it() -> None:
    assert prepare_machine(Runtime(device="cuda")) == []
