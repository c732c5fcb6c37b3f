"""Tensors as bytes: the safetensors format, written as a stream and read in place.

A safetensors file is 8 bytes (length of the header, little-endian), a JSON header {name: {dtype, shape, data_offsets}},
and the tensors' bytes without gaps. The format is written here, rather than by the `safetensors` package, for three
reasons: the run store hashes the bytes while it writes them, one tensor at a time, so that a save needs no second copy
of the model; what is read is hashed and parsed from the very same bytes; and nothing here needs torch, so that the
crash tests can start and kill a small process for every system call of a save. Little-endian machines only, as the
format is.

Tensors are compared and kept bit for bit (NaN payloads included). Tied tensors are written once per name and come back
untied: whoever loads them into a model ties them again.

Invariant (tests/checkpoints/test_tensors.py): the file equals, byte for byte, what `safetensors.torch.save` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# safetensors name: (bytes per element, torch name), in the order in which the format lays the tensors out: wide ones
# first, so that each tensor is aligned to its own elements.
DTYPES: dict[str, tuple[int, str]] = {
    "U64": (8, "uint64"),
    "I64": (8, "int64"),
    "F64": (8, "float64"),
    "C64": (8, "complex64"),
    "F32": (4, "float32"),
    "U32": (4, "uint32"),
    "I32": (4, "int32"),
    "BF16": (2, "bfloat16"),
    "F16": (2, "float16"),
    "U16": (2, "uint16"),
    "I16": (2, "int16"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "I8": (1, "int8"),
    "U8": (1, "uint8"),
    "BOOL": (1, "bool"),
}
LAYOUT_ORDER = {name: place for place, name in enumerate(DTYPES)}
NAME_OF_TORCH = {f"torch.{torch_name}": name for name, (_, torch_name) in DTYPES.items()}
METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class RawTensor:
    """A tensor without torch: element type by its safetensors name, shape, and the bytes in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        """Refuse a byte count that does not fit the shape."""
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown element type {self.dtype!r}")
        if not all(type(length) is int and length >= 0 for length in self.shape):
            raise ValueError(f"impossible shape {self.shape}")
        if self.data.nbytes != num_bytes(self.dtype, self.shape):
            raise ValueError(f"{self.data.nbytes} bytes do not hold a {self.dtype} tensor of shape {self.shape}")

    def to_torch(self) -> Tensor:
        """The same bytes as a torch tensor on the CPU (no copy: it shares `data`, which must be writable)."""
        import torch

        dtype = getattr(torch, DTYPES[self.dtype][1])
        if self.data.nbytes == 0:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype).reshape(self.shape)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type and shape."""
    return DTYPES[dtype][0] * math.prod(shape)


def describe(value: Tensor | RawTensor, where: str) -> tuple[str, tuple[int, ...]]:
    """(element type, shape) without touching the data: meta tensors will do. `where` names it in the error."""
    if isinstance(value, RawTensor):
        return value.dtype, value.shape
    dtype = NAME_OF_TORCH.get(str(getattr(value, "dtype", None)))
    if dtype is None or str(value.layout) != "torch.strided":
        raise TypeError(f"{where}: only dense tensors of {', '.join(DTYPES)} can be stored, not {type(value)} {dtype}")
    return dtype, tuple(value.shape)


def contents(value: Tensor | RawTensor) -> memoryview:
    """The tensor's bytes in row-major order, on the CPU (a copy only where the tensor does not lie so already)."""
    if isinstance(value, RawTensor):
        return value.data.cast("B") if value.data.nbytes else memoryview(b"")
    import torch

    flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class TensorFile:
    """One safetensors file to be written: laid out at once, its bytes produced tensor by tensor."""

    def __init__(self, tensors: Mapping[str, Tensor | RawTensor], where: str) -> None:
        """Lay the tensors out. Raises TypeError for what cannot be stored, naming it as `where/name`."""
        self._tensors = tensors
        kinds = {name: describe(value, f"{where}/{name}") for name, value in tensors.items()}
        if METADATA in kinds:
            raise TypeError(f"{where}: a tensor cannot be named {METADATA}, the format reserves that name")
        self._order = sorted(kinds, key=lambda name: (LAYOUT_ORDER[kinds[name][0]], name))
        header: dict[str, Any] = {METADATA: {"format": "pt"}}
        end = 0
        for name in self._order:
            dtype, shape = kinds[name]
            start, end = end, end + num_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self.num_bytes = len(self._head) + end

    def pieces(self) -> Iterator[memoryview]:
        """The file's bytes in order; at most one tensor is copied at a time."""
        yield memoryview(self._head)
        for name in self._order:
            yield contents(self._tensors[name])


def parse(data: memoryview) -> dict[str, RawTensor]:
    """The tensors in a safetensors file, as views of `data`. Raises ValueError, saying what is wrong."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("the safetensors header is longer than the file or the format's limit")
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
        header.pop(METADATA, None)
        entries = [(*entry["data_offsets"], name, entry["dtype"], entry["shape"]) for name, entry in header.items()]
        entries.sort(key=lambda entry: entry[:3])
        body, at, tensors = data[8 + size :], 0, {}
        for start, end, name, dtype, shape in entries:
            if start != at or not start <= end <= len(body):
                raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
            tensors[name], at = RawTensor(dtype, tuple(shape), body[start:end]), end
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the safetensors header is malformed ({error!r})") from error
    if at != len(body):
        raise ValueError("bytes are left over after the last tensor")
    return tensors
