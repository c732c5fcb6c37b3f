"""Small GGUF files for the tests: whole ones, and ones that lie about their sizes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np

from trivium.checkpoints.gguf_file import KINDS

TENSOR_SHAPES = {"F32": (3, 5, 2), "F16": (7,), "BF16": (2, 9)}


def text(value: str | bytes) -> bytes:
    """A text as it stands in a file."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(
    fields: bytes = b"",
    tensors: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_fields: int = 0,
    num_tensors: int = 0,
) -> bytes:
    """A header, true or not."""
    return magic + struct.pack("<IQQ", version, num_tensors, num_fields) + fields + tensors


def one_field(value: bytes, kind: int, key: str | bytes = "key") -> bytes:
    """A file of one metadata entry."""
    return header(text(key) + struct.pack("<I", kind) + value, num_fields=1)


def a_list(kind: int, count: int, values: bytes = b"") -> bytes:
    """A list of `count` values of type `kind`, or what claims to be one."""
    return one_field(struct.pack("<IQ", kind, count) + values, 9)


def listed(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor of the list, innermost dimension first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def with_tensors(*tensors: bytes, data: int = 64) -> bytes:
    """A file of tensors and `data` bytes after its header."""
    whole = header(tensors=b"".join(tensors), num_tensors=len(tensors))
    return whole + b"\0" * (-len(whole) % 32) + b"\0" * data


def alignment(value: int) -> bytes:
    """A file that states an alignment."""
    return one_field(struct.pack("<I", value), 4, "general.alignment")


F32, Q8_0, IQ2_XXS = 0, 8, 16
# What is wrong with each: the words that must be in the message.
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "left of the file"),
    "three bytes": (b"GGU", "left of the file"),
    "another magic word": (header(magic=b"GGML"), "not a GGUF file"),
    "version 1": (header(version=1), "version 1 of the format"),
    "version 4": (header(version=4), "version 4 of the format"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "a billion fields": (header(num_fields=1 << 30), "promises 1073741824 metadata entries"),
    "2^64 - 1 fields": (header(num_fields=(1 << 64) - 1), "metadata entries"),
    "2^60 tensors": (header(num_tensors=1 << 60), "tensors"),
    "a key of 2^63 bytes": (header(struct.pack("<Q", 1 << 63), num_fields=1) + bytes(99), "1024 are possible"),
    "a key longer than the file": (header(struct.pack("<Q", 900), num_fields=1) + bytes(99), "left of the file"),
    "a text longer than the file": (one_field(struct.pack("<Q", 1 << 20) + b"abc", 8), "left of the file"),
    "a text of an exabyte": (one_field(struct.pack("<Q", 1 << 60) + b"abc", 8), "are possible"),
    "a list of 2^62 bytes": (a_list(0, 1 << 62, b"abc"), "promises"),
    "a list of 2^61 doubles": (a_list(12, 1 << 61, bytes(64)), "promises"),
    "a list of 2^64 - 1 texts": (a_list(8, (1 << 64) - 1, bytes(64)), "promises"),
    "3 million truth values": (a_list(7, 3_000_000, bytes(3_000_000)), "are possible"),
    "a list of lists": (a_list(9, 1, struct.pack("<IQ", 0, 1) + b"a"), "cannot be read"),
    "a value of no type": (one_field(bytes(8), 13), "does not exist"),
    "a list of no type": (a_list(77, 1, bytes(8)), "cannot be read"),
    "half true": (one_field(b"\2", 7), "0 or 1"),
    "no UTF-8": (one_field(text(b"\xff\xfe"), 8), "not UTF-8"),
    "a key that is no UTF-8": (one_field(text("a"), 8, b"\xff"), "not UTF-8"),
    "a key twice": (header((text("a") + struct.pack("<IB", 0, 1)) * 2, num_fields=2), "there twice"),
    "alignment 0": (alignment(0), "power of two"),
    "alignment 3": (alignment(3), "power of two"),
    "alignment 2^31": (alignment(1 << 31), "power of two"),
    "a text as alignment": (one_field(text("32"), 8, "general.alignment"), "power of two"),
    "no dimensions": (with_tensors(listed("a", (), F32, 0)), "0 dimensions"),
    "five dimensions": (with_tensors(listed("a", (1, 1, 1, 1, 1), F32, 0)), "5 dimensions"),
    "2^31 dimensions": (with_tensors(text("a") + struct.pack("<I", 1 << 31)), "dimensions"),
    "a dimension of 0": (with_tensors(listed("a", (4, 0), F32, 0)), "rows of F32"),
    "a product that wraps round to 0": (with_tensors(listed("a", (1 << 32, 1 << 32), F32, 0)), "bytes in a file of"),
    "a product that wraps round to 4": (with_tensors(listed("a", ((1 << 62) + 1, 4), F32, 0)), "bytes in a file of"),
    "an exabyte": (with_tensors(listed("a", (1 << 58,), F32, 0)), "bytes in a file of"),
    "half a block": (with_tensors(listed("a", (16,), Q8_0, 0)), "made of 32 numbers"),
    "a kind that does not exist": (with_tensors(listed("a", (4,), 4, 0)), "does not exist"),
    "a kind we cannot read": (with_tensors(listed("a", (256,), IQ2_XXS, 0)), "stored as IQ2_XXS"),
    "a tensor twice": (
        with_tensors(listed("a", (4,), F32, 0), listed("a", (4,), F32, 32)),
        "there twice",
    ),
    "overlapping tensors": (with_tensors(listed("a", (4,), F32, 0), listed("b", (4,), F32, 0)), "not where the one"),
    "an offset that is not aligned": (with_tensors(listed("a", (4,), F32, 4)), "not where the one before"),
    "an offset beyond the file": (with_tensors(listed("a", (4,), F32, 1 << 63)), "not where the one before"),
    "data cut off": (with_tensors(listed("a", (16,), F32, 0), data=63), "cut off"),
}


def write_whole(path: Path) -> None:
    """A valid file with every type of value and every kind of tensor that can be read."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", 'ünïcode ☃ "quoted"')
    writer.add_array("texts", ["a", "", "\n", "日本"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, 1e-5])
    writer.add_array("truths", [True, False])
    for kind in KINDS:
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if kind in ("F32", "F16"):
            values = rng.standard_normal(TENSOR_SHAPES[kind]).astype(np.float32 if kind == "F32" else np.float16)
            writer.add_tensor(kind, values)
        elif kind == "BF16":
            values = rng.integers(0, 256, (*TENSOR_SHAPES[kind][:-1], TENSOR_SHAPES[kind][-1] * 2), dtype=np.uint8)
            writer.add_tensor(kind, values, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            blocks = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
            writer.add_tensor(kind, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mutated(data: bytes, header_bytes: int, seed: int) -> bytes:
    """The file with one to three damages in its header."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        damage(damaged, rng.randrange(max(1, min(header_bytes, len(damaged)))), rng)
    return bytes(damaged)


def damage(data: bytearray, at: int, rng: random.Random) -> None:
    """Change, insert or remove bytes at one place."""
    match rng.randrange(7):
        case 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        case 1:
            data[at : at + 1] = bytes([byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]])
        case 2:
            data[at : at + 8] = struct.pack("<Q", rng.getrandbits(rng.randint(1, 64)))
        case 3:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 1 << 31, 0xFFFFFFFF]))
        case 4:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        case 5:
            del data[at : at + rng.randint(1, 9)]
        case 6:
            del data[at:]
