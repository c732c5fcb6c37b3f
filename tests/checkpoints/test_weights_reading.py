"""How much memory loading needs; what is damaged or hostile: `test_directory.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trivium.checkpoints.directory import save_weights
from trivium.families import FAMILIES
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig

MEASURE = """
import sys
from pathlib import Path
import torch
from trivium.checkpoints import weights_reading
from trivium.checkpoints.directory import load_weights

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

small, big, dtype, variant = sys.argv[1:]
load_weights(Path(small), dtype=dtype)  # what torch needs once is not counted
if variant == "all at once":
    real = weights_reading.safe_open
    class Greedy:
        def __init__(self, *args, **keywords):
            self.file = real(*args, **keywords)
        def __enter__(self):
            file = self.file.__enter__()
            self.tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            return self
        def __exit__(self, *args):
            self.file.__exit__(*args)
        def get_tensor(self, name):
            return self.tensors[name]
    weights_reading.safe_open = lambda *a, **k: Greedy(*a, **k) if "device" in k else real(*a, **k)
before = status("VmRSS")
anonymous = status("RssAnon")
model, _ = load_weights(Path(big), dtype=dtype)
print(status("VmHWM") - before, status("RssAnon") - anonymous)
"""


def growth(folder: Path, family: str, dtype: str, variant: str = "") -> tuple[float, float]:
    """(peak of all memory, lasting memory that is not the file's pages) of loading, each over the file's size."""
    for name, width, layers in (("small", 32, 1), ("big", 512, 5)):
        if not (folder / name).exists():
            shape = {"vocab_size": 4096, "width": width, "layers": layers, "heads": 8, "max_positions": 64}
            config = ModelConfig(**{**FAMILIES[family].shape, **shape})
            model = build_model(config)
            initialise(model, config, 0)
            save_weights(folder / name, model, config, family=family)
    size = (folder / "big" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", MEASURE, str(folder / "small"), str(folder / "big"), dtype, variant]
    peak, lasting = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(peak) / size, int(lasting) / size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
def test_loading_converts_tensor_by_tensor(tmp_path: Path) -> None:
    """72 MB in fp32 become 36 MB in bf16: pages of the file, the result, and one tensor more are all that is needed."""
    peak, lasting = growth(tmp_path, "llama", "bf16")
    assert peak < 1.7 and lasting < 0.6, f"peak {peak:.2f}, lasting {lasting:.2f} x the file"
    # Broken control: all tensors in memory at once are seen.
    assert growth(tmp_path, "llama", "bf16", "all at once")[0] > 1.9


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
def test_turned_matrices_are_copied_once(tmp_path: Path) -> None:
    """GPT-2's: the pages of the file may be given back at any time; beside them there is one copy of the weights."""
    peak, lasting = growth(tmp_path, "gpt2", "fp32")
    assert peak < 2.3 and lasting < 1.1, f"peak {peak:.2f}, lasting {lasting:.2f} x the file"
