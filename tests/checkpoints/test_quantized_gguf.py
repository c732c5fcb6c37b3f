"""Q8_0 and Q4_0 files from `trivium export`, read by the gguf library and by llama.cpp's own code: the same numbers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from checkpoints.gguf_models import config_of, model_of, tokenizer
from cli.small_models import result
from trivium.checkpoints.bundle import Bundle, quantize
from trivium.checkpoints.directory import save_model_directory
from trivium.checkpoints.gguf_file import read_header, read_tensor
from trivium.quantization.schemes import scheme_for

Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
CODES = (Q4_0, Q8_0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model, and the same in int8 and int4."""
    folder, config = tmp_path_factory.mktemp("models"), config_of("llama")
    save_model_directory(folder / "dense", model_of(config), config, tokenizer())
    for format in ("int8", "int4"):
        made = quantize(Bundle(model_of(config), tokenizer(), config), scheme_for(format))
        made.save(folder / format)
    return {name: folder / name for name in ("dense", "int8", "int4")}


def llama_cpp_numbers(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """What llama.cpp's library makes of stored rows."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp")
    libraries = sorted((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    if not libraries:
        pytest.skip("llama.cpp is there without its libraries")
    function = getattr(ctypes.CDLL(str(libraries[0])), f"dequantize_row_{kind.name.lower()}")
    raw = np.ascontiguousarray(data).view(np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    numbers = np.empty((raw.shape[0], raw.shape[1] // size * block), np.float32)
    function(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(numbers.ctypes.data), ctypes.c_int64(numbers.size))
    return numbers


def exported(model: Path, dtype: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = folder / "m.gguf"
    assert result(capsys, "export", model, "--to", "gguf", "--dtype", dtype, "--out", file)["dtype"] == dtype
    return file


@pytest.mark.parametrize("source", ["dense", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_both_read_the_numbers_that_we_read(
    dtype: str, source: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(models[source], dtype, tmp_path, capsys)
    header, seen = read_header(file), []
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type not in CODES:
            continue
        seen.append(tensor.tensor_type)
        ours = read_tensor(header, tensor.name, torch.float32).numpy()
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), ours), tensor.name
        assert np.array_equal(llama_cpp_numbers(tensor.data, tensor.tensor_type), ours), tensor.name
    assert len(seen) == 2 * 7 + 1 and seen.count(Q8_0) == (15 if dtype == "q8_0" else 1)


def test_the_control_exchanged_halves_of_a_byte_are_seen(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(models["int4"], "q4_0", tmp_path, capsys)
    (down,) = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.1.ffn_down.weight"]
    ours = read_tensor(read_header(file), down.name, torch.float32).numpy()
    wrong = down.data.reshape(len(down.data), -1, 18).copy()
    wrong[..., 2:] = (wrong[..., 2:] >> 4) | (wrong[..., 2:] << 4)
    wrong = wrong.reshape(down.data.shape)
    assert not np.array_equal(gguf.dequantize(wrong, Q4_0), ours)
    assert not np.array_equal(llama_cpp_numbers(wrong, Q4_0), ours)
