"""Loading goes straight to the packed form: its peak, each time in a process of its own, is about the packed size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from checkpoints.gguf_models import tokenizer
from trivium.checkpoints.bundle import Bundle, quantize
from trivium.checkpoints.directory import save_model_directory
from trivium.models.build import build_model
from trivium.models.config import ModelConfig

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which tells a process's peak"
)
FORMATS = ("int8", "int4")
SLACK = 16 << 20
# Of all that a process holds while it loads, read once and gone through, as a use of the model does.
MEMORY = """
import sys
import torch
from trivium.checkpoints.directory import load_weights
from trivium.quantization.quantize import quantize_model
from trivium.quantization.schemes import scheme_for

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

path, while_read, afterwards = sys.argv[1:]
torch.ones(64, 64) @ torch.ones(64, 64)
scheme = scheme_for(while_read) if while_read else None
open("/proc/self/clear_refs", "w").write("5")
before = peak()
model, _ = load_weights(path, scheme=scheme)
if afterwards:
    quantize_model(model, afterwards)
sum(int(tensor.view(-1)[:: 256].sum()) for tensor in model.state_dict().values())
sys.stdout.write(str(peak() - before))
"""


class Saved(NamedTuple):
    """A model directory and the bytes of its weights."""

    path: Path
    num_bytes: int


def of(path: Path) -> Saved:
    return Saved(path, sum(file.stat().st_size for file in path.glob("*.safetensors")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """200 MB of a dense model, and the same packed."""
    folder = tmp_path_factory.mktemp("models")
    config = ModelConfig(vocab_size=4096, width=1024, layers=4, heads=8, max_positions=64, mlp_width=3072)
    model = build_model(config)
    save_model_directory(folder / "dense", model, config, tokenizer())
    for format in FORMATS:
        quantize(Bundle(model, tokenizer(), config), format).save(folder / format)
    return {name: of(folder / name) for name in ("dense", *FORMATS)}


def taken(path: Path, while_read: str = "", afterwards: str = "") -> int:
    """Bytes by which loading raises the most that the process ever held."""
    command = [sys.executable, "-c", MEMORY, str(path), while_read, afterwards]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("format", FORMATS)
def test_a_packed_directory_takes_its_own_size(format: str, models: dict[str, Saved]) -> None:
    packed, dense = models[format], models["dense"]
    assert packed.num_bytes < {"int8": 0.27, "int4": 0.17}[format] * dense.num_bytes
    assert 0.8 * packed.num_bytes < taken(packed.path) < packed.num_bytes + SLACK


@pytest.mark.parametrize("format", FORMATS)
def test_a_dense_directory_takes_the_packed_size_and_one_tensor(format: str, models: dict[str, Saved]) -> None:
    largest = 4 * 4096 * 1024
    assert taken(models["dense"].path, format) < models[format].num_bytes + 2 * largest + SLACK


def test_the_control_a_model_packed_after_it_was_loaded_is_seen(models: dict[str, Saved]) -> None:
    dense = models["dense"]
    most = max(models[format].num_bytes for format in FORMATS) + 2 * 4 * 4096 * 1024 + SLACK
    assert taken(dense.path, afterwards="int8") > dense.num_bytes > most


def test_the_size_of_a_file_is_that_of_its_codes_and_scales(models: dict[str, Saved]) -> None:
    config = json.loads((models["int4"].path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "trivium"
    # 18 bytes of every 32 numbers in the blocks, 1 and a scale a row in the table; norms are a few KB.
    blocks, table = 4 * (4 * 1024 * 1024 + 3 * 1024 * 3072), 4096 * 1024
    expected = blocks * 18 // 32 + table + 4 * 4096
    assert 0 < models["int4"].num_bytes - expected < 60_000
