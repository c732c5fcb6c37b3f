"""Bytes of a data file, unpacked and counted as they are read: a small file cannot become a large allocation.

Nothing a file says about its own size is believed. Unpacked bytes are counted while they stream (gzip and zstd through
Arrow, which also notices a stream that ends too early), lines and whole documents have a length limit, and all text is
strict UTF-8. The invariant its test checks: a bomb or an endless line is refused after at most the limits below,
whatever its size.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trivium.errors import UserError

# One line of a jsonl, csv, tsv or txt file: ten times the longest books.
MAX_LINE_BYTES = 32 << 20
# So many blank lines on end are no data, but time: 1 MB of gzip holds 1,000 million of them.
MAX_BLANK_LINES = 500_000
# One document that is a whole file (enwik8 fits), and one JSON object that must be read at once.
MAX_DOCUMENT_BYTES = 96 << 20
# A compressed file may unpack to this much in any case, and beyond it to MAX_EXPANSION times its own size. Text
# shrinks 3 to 20 times, logs perhaps 100 times.
FREE_EXPANSION_BYTES = 64 << 20
MAX_EXPANSION = 200

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_MEGABYTE = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def compression_of(path: Path) -> str | None:
    """`gzip`, `zstd` or None, by the file's last extension."""
    return COMPRESSIONS.get(path.suffix.lower())


class Expansion:
    """Counts what comes out of a compressed file against what it holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = max(FREE_EXPANSION_BYTES, MAX_EXPANSION * path.stat().st_size)
        self._bytes = 0

    def count(self, num_bytes: int) -> None:
        """`num_bytes` more came out; a UserError when that is more than any honest file holds."""
        self._bytes += num_bytes
        if self._bytes > self._limit:
            raise UserError(
                f"{self._path}: unpacks to more than {self._limit // _MEGABYTE} MB, over {MAX_EXPANSION} times its "
                "size, as only a decompression bomb does; if it is yours, unpack it first"
            )


class _Unpacked(io.RawIOBase):
    """The bytes inside a compressed file, counted."""

    def __init__(self, path: Path, compression: str) -> None:
        import pyarrow as pa

        self._source: Any = None
        self._path = path
        self._compression = compression
        self._expansion = Expansion(path)
        self._source = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._source.readinto(buffer))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._path}: damaged, or not a {self._compression} file ({reason})") from error
        self._expansion.count(count)
        return count

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        super().close()


def open_bytes(path: Path) -> io.BufferedReader:
    """The (unpacked) bytes of a file, to be read in pieces."""
    compression = compression_of(path)
    try:
        if compression is None:
            return path.open("rb")
        return io.BufferedReader(_Unpacked(path, compression), _MEGABYTE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def decode(data: bytes | bytearray, where: str) -> str:
    """UTF-8 text, or a UserError that says which byte is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} (0x{data[error.start]:02x}) is not UTF-8 text; save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its line end) of a text file; a byte-order mark is dropped."""
    with open_bytes(path) as stream:
        number = blank = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            blank = blank + 1 if line.isspace() else 0
            if blank > MAX_BLANK_LINES:
                raise UserError(f"{path}, line {number}: the last {MAX_BLANK_LINES:,} lines are blank")
            if len(line) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES // _MEGABYTE} MB; is it one record a line?"
                )
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            yield number, decode(line, f"{path}, line {number}")


def read_document(path: Path) -> str:
    """A whole file as one text; a byte-order mark is dropped, nothing else is changed."""
    data = bytearray()
    with open_bytes(path) as stream:
        while chunk := stream.read(_MEGABYTE):
            data += chunk
            if len(data) > MAX_DOCUMENT_BYTES:
                raise UserError(
                    f"{path}: longer than {MAX_DOCUMENT_BYTES // _MEGABYTE} MB, the most that is read as one piece; "
                    "cut it into files, make it .jsonl, or (in a recipe) read a .txt with data.text_layout=line"
                )
    if data.startswith(_BYTE_ORDER_MARK):
        del data[: len(_BYTE_ORDER_MARK)]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line_start = data.rfind(b"\n", 0, error.start) + 1
        line = data.count(b"\n", 0, line_start) + 1
        decode(data[line_start : error.end], f"{path}, line {line}")
        raise
