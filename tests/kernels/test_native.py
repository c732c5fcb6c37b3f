"""The compiled library: found, of this version, switched by the environment, and sharing torch's threads."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.packed import needs_kernels
from trivium.kernels import available, linear
from trivium.kernels.native import native
from trivium.kernels.structures import ALL


@needs_kernels
def test_structures_are_as_large_as_their_twins() -> None:
    library = native()
    assert library is not None
    sizes = [library.library.trivium_size(which) for which in range(len(ALL) + 1)]
    assert sizes == [*(ctypes.sizeof(each) for each in ALL), 0]


@needs_kernels
def test_the_environment_chooses_a_level_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_KERNELS", "plain")
    plain = native()
    assert plain is not None and plain.name == "plain"
    monkeypatch.setenv("TRIVIUM_KERNELS", "off")
    assert not available()
    with pytest.raises(RuntimeError, match="available"):
        linear(torch.ones(1, 4), "fp32", torch.ones(2, 4))


@needs_kernels
def test_threads_are_those_of_torch_and_few_for_little_work() -> None:
    library, threads = native(), torch.get_num_threads()
    assert library is not None
    try:
        torch.set_num_threads(3)
        assert [library.threads(weights) for weights in (1, 1 << 16, 1 << 30)] == [1, 2, 3]
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs a system that lists loaded libraries")
def test_there_is_one_openmp_runtime() -> None:
    script = (
        "from trivium.kernels import linear; import torch, pathlib\n"
        "linear(torch.ones(1, 4), 'fp32', torch.ones(2, 4))\n"
        "lines = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "names = {line.split()[-1] for line in lines if 'omp' in line.split()[-1].rpartition('/')[2]}\n"
        "assert sum('gomp' in name or 'iomp' in name for name in names) == 1, names\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
