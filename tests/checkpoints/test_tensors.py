"""The safetensors format written and read here is the one of the safetensors package, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trivium.checkpoints.tensors import DTYPES, RawTensor, TensorFile, parse


def awkward() -> dict[str, torch.Tensor]:
    """Every element type, random bits in it (NaN payloads too), and every way in which a tensor can lie in memory."""
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=generator)
    tensors = {}
    for name, (width, torch_name) in DTYPES.items():
        dtype = getattr(torch, torch_name)
        tensors[f"bits.{name}"] = (bits % 2 if name == "BOOL" else bits).view(dtype).reshape(2, 24 // width)
    base = torch.randn(6, 8, generator=generator)
    tied = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
    return tensors | {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "expanded": base[:1].expand(4, 8),
        "negated view": torch.view_as_complex(base.reshape(24, 2)).conj().imag,
        "conjugate": torch.conj(torch.view_as_complex(base.reshape(24, 2))),
        "offset": base.flatten()[5:9],
        "one number": torch.tensor(float("nan"), dtype=torch.bfloat16),
        "minus zero": torch.tensor([-0.0, float("inf")]),
        "empty": torch.zeros(0, 4),
        "empty too": torch.zeros(3, 0, 2, dtype=torch.int64),
        "tied.a": tied,
        "tied.b": tied,
        'ünïcode \u2603 "quoted"': torch.ones(2, dtype=torch.int8),
    }


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    file = TensorFile(tensors, "model")
    data = b"".join(file.pieces())
    assert len(data) == file.num_bytes
    return data


def test_the_file_is_byte_for_byte_the_one_of_safetensors() -> None:
    tensors = awkward()
    plain = {name: t.detach().clone().resolve_conj().resolve_neg().contiguous() for name, t in tensors.items()}
    assert written(tensors) == safetensors.torch.save(plain, metadata={"format": "pt"})
    assert written({}) == safetensors.torch.save({}, metadata={"format": "pt"})


def test_every_bit_comes_back() -> None:
    tensors = awkward()
    read = parse(memoryview(bytearray(written(tensors))))
    assert read.keys() == tensors.keys()
    for name, saved in tensors.items():
        back, saved = read[name].to_torch(), saved.detach().resolve_conj().resolve_neg()
        assert back.dtype == saved.dtype and back.shape == saved.shape, name
        assert back.reshape(-1).view(torch.uint8).tolist() == saved.contiguous().reshape(-1).view(torch.uint8).tolist()
        back.zero_()  # writable


def test_sizes_are_known_without_data() -> None:
    meta = {"w": torch.empty(1 << 20, 1 << 10, device="meta", dtype=torch.bfloat16)}
    assert 2**31 < TensorFile(meta, "model").num_bytes < 2**31 + 200


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), [1.0], torch.ones(2, dtype=torch.complex128)])
def test_what_cannot_be_stored_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match="model/w: only dense tensors"):
        TensorFile({"w": value}, "model")
    with pytest.raises(TypeError, match="reserves"):
        TensorFile({"__metadata__": torch.ones(1)}, "model")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},  # bytes left over
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},  # shape and bytes differ
        {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},  # beyond the end
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},  # a hole
        {
            "a": {"dtype": "U8", "shape": [12], "data_offsets": [0, 12]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
        },
        {"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}},
        {"a": 3},
        [1],
    ],
)
def test_a_malformed_header_is_refused(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ValueError):
        parse(memoryview(bytearray(len(text).to_bytes(8, "little") + text + bytes(16))))


def test_random_bytes_never_do_more_than_raise_value_error() -> None:
    """Mutations of a real file: where both readers accept one, they read the same; ours never fails otherwise."""
    rng, real = random.Random(1), bytearray(written({"a": torch.arange(6.0), "b": torch.ones(3, dtype=torch.int16)}))
    accepted = 0
    for _ in range(3000):
        data = bytearray(real[: rng.choice([len(real), rng.randrange(len(real) + 1)])])
        for _ in range(rng.randrange(3)):
            if data:
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        try:
            ours = parse(memoryview(data))
        except ValueError:
            continue
        try:
            theirs = safetensors.torch.load(bytes(data))
        except Exception:
            continue
        accepted += 1
        assert {name: bytes(t.data) for name, t in ours.items()} == {
            name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in theirs.items()
        }
    assert accepted > 100


def test_a_raw_tensor_must_fit_its_shape() -> None:
    with pytest.raises(ValueError, match="7 bytes do not hold"):
        RawTensor("F32", (2,), memoryview(bytes(7)))


def test_header_names_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(written(awkward()))
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == awkward().keys()
