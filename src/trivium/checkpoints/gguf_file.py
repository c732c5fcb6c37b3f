"""GGUF files: the header read with bounds, tensors dequantized piece by piece.

A GGUF file (version 3 of the format of ggml; version 2 differs in nothing read here) is a magic word, counts, metadata
(typed keys and values), a list of tensors (name, dimensions with the innermost first, kind, offset), and the tensors'
bytes, each aligned. Its sizes are claims of whoever made it. The header is therefore read here and not by `GGUFReader`
of the `gguf` library, which believes them: every count, length, dimension and offset must lie within the file before
anything of that size is made. Tensors must follow one another without overlap, in the order of the list, as llama.cpp
demands too. What the numbers of a block mean is the library's business: `gguf.quants.dequantize`.

Invariants (tested): what both accept, `GGUFReader` reads the same; any damaged file gives a UserError of one line, in
memory bounded by the file's size; tensors equal the library's bit for bit, with one copy of them in memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import gguf
import numpy as np
import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.families.reading import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Every published vocabulary, its merges and scores counted together, stays below half of this.
LARGEST_ENTRIES = 1 << 21
"""Entries of all arrays together; one costs up to about 60 bytes of memory."""
LARGEST_STRING = 16 << 20
"""Bytes of one text (a chat template is the longest)."""
LARGEST_KEY = 1 << 10
"""Bytes of a key or of a tensor's name (the format allows tensors 64)."""
LARGEST_TENSOR_COUNT = 100_000
LARGEST_ALIGNMENT = 1 << 20
MOST_DIMENSIONS = 4

# The least bytes that one entry of metadata, one tensor of the list, takes.
SMALLEST_VALUE, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

STRING, ARRAY, BOOL = 8, 9, 7
# Number of the type in the file: numpy type.
NUMBERS: dict[int, np.dtype[Any]] = {
    number: np.dtype(kind)
    for number, kind in {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"}.items()
} | {number: np.dtype(kind) for number, kind in {BOOL: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}.items()}

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""How tensors may be stored, by their ggml names."""

# Numbers dequantized at a time: few enough to stay in the processor's cache.
PIECE = 1 << 17


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: the outermost dimension first."""
    kind: str
    """One of KINDS."""
    start: int
    """Where its bytes begin in the file."""
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a file: what it says of itself, and where its tensors are."""

    path: Path
    fields: Mapping[str, Any]
    """Metadata: numbers, truth values, texts, and lists of these."""
    tensors: Mapping[str, StoredTensor]
    """By name, in the order of the file."""


def read_header(path: str | Path) -> GgufFile:
    """Read and check everything but the tensors' bytes; UserError that names the file and what is wrong with it."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a regular file")
        with path.open("rb") as file:
            return _Header(path, file, path.stat().st_size).read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_tensor(file: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor `name` in `dtype`, on the CPU. Besides it only a piece of it is in memory."""
    stored = file.tensors[name]
    kind = gguf.GGMLQuantizationType[stored.kind]
    block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    piece_bytes = max(1, PIECE // block_numbers) * block_bytes
    tensor = torch.empty(stored.shape, dtype=dtype)
    flat, at, left = tensor.view(-1), 0, stored.num_bytes
    try:
        with file.path.open("rb") as data:
            data.seek(stored.start)
            while left:
                raw = data.read(min(piece_bytes, left))
                if len(raw) < min(piece_bytes, left):
                    raise UserError(f"{file.path}: {name} ends early: the file has become shorter")
                with np.errstate(all="ignore"):  # scales may be infinite or no numbers; what they give is then neither
                    numbers = gguf.dequantize(np.frombuffer(bytearray(raw), np.uint8)[None], kind)[0]
                flat[at : at + numbers.size] = torch.from_numpy(numbers)
                at, left = at + numbers.size, left - len(raw)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror}") from None
    return tensor


def read_blocks(file: GgufFile, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The blocks of the matrix `name` as they are stored: bytes of shape (rows, blocks of a row, bytes of a block)."""
    stored = file.tensors[name]
    block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored.kind]]
    blocks = np.empty((*stored.shape[:-1], stored.shape[-1] // block_numbers, block_bytes), np.uint8)
    try:
        with file.path.open("rb") as data:
            data.seek(stored.start)
            if data.readinto(blocks.data.cast("B")) < stored.num_bytes:
                raise UserError(f"{file.path}: {name} ends early: the file has become shorter")
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror}") from None
    return blocks


class _Header:
    """Reads forward through a file and never takes more than the file still holds."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.at = 0
        self.entries = 0

    def read(self) -> GgufFile:
        """The whole header."""
        if self.take(4, "the magic word") != MAGIC:
            self.refuse("not a GGUF file (it does not begin with GGUF)")
        version = self.number(4, "the version")
        if version not in VERSIONS:
            big_endian = version & 0xFFFF == 0 and version > 0
            self.refuse(
                "written for big-endian machines: convert it again for little-endian ones"
                if big_endian
                else f"version {version} of the format; versions 2 and 3 can be read"
            )
        num_tensors = self.count(8, SMALLEST_TENSOR, LARGEST_TENSOR_COUNT, "tensors")
        num_fields = self.count(8, SMALLEST_VALUE, LARGEST_ENTRIES, "metadata entries")
        fields: dict[str, Any] = {}
        for place in range(num_fields):
            key = self.text(LARGEST_KEY, f"key {place}")
            if key in fields:
                self.refuse(f"the key {shown(key)} is there twice")
            fields[key] = self.value(self.number(4, shown(key)), shown(key))
        alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= LARGEST_ALIGNMENT or alignment.bit_count() != 1:
            self.refuse(f"general.alignment is {shown(alignment)}: it must be a power of two")
        listed = [self.tensor(place) for place in range(num_tensors)]
        return GgufFile(self.path, fields, self.placed(listed, alignment))

    def tensor(self, place: int) -> tuple[StoredTensor, int]:
        """One entry of the list (its place in the file not known yet), and its offset."""
        name = self.text(LARGEST_KEY, f"the name of tensor {place}")
        dimensions = self.number(4, shown(name))
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            self.refuse(f"{shown(name)} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")
        shape = tuple(self.number(8, shown(name)) for _ in range(dimensions))[::-1]
        number = self.number(4, shown(name))
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            self.refuse(f"{shown(name)} is of kind {number}, which does not exist")
        if kind.name not in KINDS:
            self.refuse(f"{shown(name)} is stored as {kind.name}; {', '.join(KINDS)} can be read")
        block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block_numbers:
            self.refuse(f"{shown(name)} is {shape}, but rows of {kind.name} are made of {block_numbers} numbers each")
        num_bytes = math.prod(shape) // block_numbers * block_bytes
        if num_bytes > self.size:
            self.refuse(f"{shown(name)} is {shape}: {num_bytes} bytes in a file of {self.size}")
        return StoredTensor(name, shape, kind.name, 0, num_bytes), self.number(8, shown(name))

    def placed(self, listed: list[tuple[StoredTensor, int]], alignment: int) -> dict[str, StoredTensor]:
        """The tensors at their places, each where the one before it ends."""
        tensors: dict[str, StoredTensor] = {}
        data, end = _padded(self.at, alignment), 0
        for tensor, offset in listed:
            if tensor.name in tensors:
                self.refuse(f"the tensor {shown(tensor.name)} is there twice")
            if offset != end:
                self.refuse(f"{shown(tensor.name)} begins at {offset} and not where the one before it ends, at {end}")
            start = data + offset
            if start + tensor.num_bytes > self.size:
                self.refuse(
                    f"{shown(tensor.name)} {tensor.shape} reaches to byte {start + tensor.num_bytes}, but the file has "
                    f"{self.size}: is it cut off?"
                )
            tensors[tensor.name] = StoredTensor(tensor.name, tensor.shape, tensor.kind, start, tensor.num_bytes)
            end = _padded(offset + tensor.num_bytes, alignment)
        return tensors

    def value(self, kind: int, key: str) -> Any:
        """A value of type `kind`."""
        if kind == STRING:
            return self.text(LARGEST_STRING, key)
        if kind in NUMBERS:
            return self.numbers(kind, 1, key)[0]
        if kind != ARRAY:
            self.refuse(f"{key} is of type {kind}, which does not exist")
        kind = self.number(4, key)
        if kind not in NUMBERS and kind != STRING:
            self.refuse(f"{key} is a list of type {kind}, which cannot be read")
        size = 8 if kind == STRING else NUMBERS[kind].itemsize
        count = self.count(8, size, LARGEST_ENTRIES - self.entries, f"entries of {key}")
        self.entries += count
        if kind == STRING:
            return [self.text(LARGEST_STRING, key) for _ in range(count)]
        return self.numbers(kind, count, key)

    def numbers(self, kind: int, count: int, key: str) -> list[Any]:
        """`count` numbers or truth values."""
        dtype = NUMBERS[kind]
        values = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind == BOOL:
            if values.size and values.max() > 1:
                self.refuse(f"{key} must be 0 or 1 (false or true)")
            values = values.astype(bool)
        return values.tolist()  # type: ignore[no-any-return]

    def text(self, largest: int, what: str) -> str:
        """A text, its length before it."""
        length = self.number(8, what)
        if length > largest:
            self.refuse(f"{what} has {length} bytes; {largest} are possible")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not UTF-8 text (byte {error.start})")

    def count(self, num_bytes: int, smallest: int, largest: int, what: str) -> int:
        """How many there are; refused when so many, of `smallest` bytes each, do not fit into the rest of the file."""
        count = self.number(num_bytes, f"the number of {what}")
        if count * smallest > self.size - self.at:
            self.refuse(f"it promises {count} {what}, but only {self.size - self.at} bytes are left of it")
        if count > largest:
            self.refuse(f"it has {count} {what}; {largest} are possible")
        return count

    def number(self, num_bytes: int, what: str) -> int:
        """An unsigned whole number."""
        return struct.unpack("<I" if num_bytes == 4 else "<Q", self.take(num_bytes, what))[0]  # type: ignore[no-any-return]

    def take(self, num_bytes: int, what: str) -> bytes:
        """The next bytes."""
        left = self.size - self.at
        taken = self.file.read(num_bytes) if num_bytes <= left else b""
        if len(taken) < num_bytes:
            self.refuse(f"{what} takes {num_bytes} bytes, but only {left} are left of the file: is it cut off?")
        self.at += num_bytes
        return taken

    def refuse(self, wrong: str) -> NoReturn:
        """Raise the UserError."""
        raise UserError(f"{self.path}: {wrong}")


def _padded(number: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-number // alignment) * alignment
