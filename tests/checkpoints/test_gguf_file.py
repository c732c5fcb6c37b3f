"""GGUF files are read as the library reads them, and one that lies is refused before anything of its size is made."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from checkpoints.gguf_samples import F32, LIES, a_list, listed, text, with_tensors, write_whole
from trivium.checkpoints.gguf_file import KINDS, LARGEST_ENTRIES, read_header, read_tensor
from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_whole(path)
    return path


def same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and one.tobytes() == two.tobytes()


def test_metadata_is_what_the_library_reads(whole: Path) -> None:
    found, reference = read_header(whole).fields, gguf.GGUFReader(whole).fields
    expected = {key: field.contents() for key, field in reference.items() if not key.startswith("GGUF.")}
    assert found == expected and {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in expected.items()
    }
    assert found["u64"] == 1 << 63 and found["text"] == 'ünïcode ☃ "quoted"' and found["yes"] is True


def test_tensors_of_every_kind_are_bit_for_bit_the_library_s(whole: Path) -> None:
    file, reference = read_header(whole), {tensor.name: tensor for tensor in gguf.GGUFReader(whole).tensors}
    assert list(file.tensors) == list(KINDS) == list(reference)
    for kind, theirs in reference.items():
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(theirs.data, theirs.tensor_type)
        ours = read_tensor(file, kind, torch.float32)
        assert tuple(theirs.shape[::-1]) == file.tensors[kind].shape == tuple(ours.shape)
        assert same_bits(ours.numpy(), expected), kind
        half = read_tensor(file, kind, torch.bfloat16)
        assert half.dtype == torch.bfloat16
        assert torch.equal(half.nan_to_num(), torch.from_numpy(expected.copy()).to(torch.bfloat16).nan_to_num())


def test_a_tensor_of_many_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((700, 1024)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "large.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("large", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_header(tmp_path / "large.gguf")
    expected = gguf.dequantize(gguf.quantize(values, kind), kind)
    assert same_bits(read_tensor(file, "large", torch.float32).numpy(), expected)


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_in_one_line(lie: str, tmp_path: Path) -> None:
    data, words = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError) as refused:
        read_header(path)
    message = str(refused.value)
    assert message.startswith(f"{path}") and words in message and "\n" not in message and len(message) < 400


def test_the_control_the_same_files_without_their_lie_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "true.gguf"
    two = (listed("a", (4,), F32, 0), listed("b", (4,), F32, 32))
    for data in (with_tensors(), with_tensors(*two), a_list(7, 3, b"\0\1\0"), a_list(8, 2, text("a") + text(""))):
        path.write_bytes(data)
        read_header(path)
    # The library takes tensors that share bytes: a small file could then ask for any amount of memory.
    path.write_bytes(LIES["overlapping tensors"][0])
    assert len(gguf.GGUFReader(path).tensors) == 2


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf", tmp_path / "absent.gguf"):
        with pytest.raises(UserError, match="not a regular file"):
            read_header(path)
    (tmp_path / "whole.gguf").write_bytes(with_tensors())
    assert resolve_model(tmp_path / "whole.gguf") == tmp_path / "whole.gguf"


def test_a_file_that_becomes_shorter_is_refused(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(whole.read_bytes())
    file = read_header(path)
    path.write_bytes(whole.read_bytes()[: file.tensors["Q6_K"].start + 10])
    with pytest.raises(UserError, match="Q6_K ends early"):
        read_tensor(file, "Q6_K", torch.float32)


def test_lies_and_mutants_are_answered_in_bounded_memory_and_time(tmp_path: Path) -> None:
    """Memory is limited by the kernel to a little more than the interpreter takes."""
    program = TESTS / "checkpoints" / "programs" / "read_hostile_gguf.py"
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(tmp_path), "600"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["limited"], "the control: what is larger than the limit could be allocated"
    assert all(LIES[name][1] in answer for name, answer in found["answers"].items())
    assert 300 < found["refused"] < 600 and found["slowest"] < 1.0


def test_the_number_of_entries_is_bounded_over_all_lists(tmp_path: Path) -> None:
    count = LARGEST_ENTRIES // 2 + 1
    one = struct.pack("<I", 9) + struct.pack("<IQ", 0, count) + bytes(count)
    path = tmp_path / "many.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + one)
    assert len(read_header(path).fields["a"]) == count
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + text("a") + one + text("b") + one)
    with pytest.raises(UserError, match='"b"'):
        read_header(path)
