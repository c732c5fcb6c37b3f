"""JSON files as rows: JSON lines, an array of objects (read element by element), or an object with one such array.

Strict JSON (RFC 8259): `NaN`, `Infinity` and halves of surrogate pairs, which Python would let through, are refused,
since no later stage could use them. An array is never read as a whole, so its size is bounded by its largest element.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from trivium.data.row import Row, place
from trivium.data.streams import MAX_LINE_BYTES, open_bytes, read_document, read_lines
from trivium.errors import UserError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_CHUNK_CHARACTERS = 1 << 18


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One JSON object on each line; blank lines are passed over."""
    number = 0
    for line_number, line in read_lines(path):
        if line.strip():
            number += 1
            where = place(path, number, line_number)
            try:
                value = _DECODER.decode(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}, column {error.colno}: broken JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: {_reason(error)}") from error
            yield _row(value, line, path, number, line_number)


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a .json file: an array of objects, an object with one such array, or (misnamed) JSON lines."""
    with open_bytes(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        elements = _Elements(path, text)
        first = elements.peek()
        if first == "[":
            yield from elements.rows()
            return
    if first == "{":
        yield from _object_rows(path)
    elif first:
        raise UserError(f"{path}, line 1: broken JSON: an array of objects begins with '[', not with {first!r}")


def _row(value: Any, source: str, path: Path, number: int, line: int | None = None) -> Row:
    """A parsed value as a row; it must be an object whose strings are Unicode text."""
    where = place(path, number, line)
    if not isinstance(value, dict):
        raise UserError(f"{where}: {_name_of(value)} where an object with keys is needed")
    if _SURROGATE.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: a \\u escape is half of a surrogate pair, which is no character") from error
    return Row(value, str(path), number, line)


def _object_rows(path: Path) -> Iterator[Row]:
    """The one array of objects inside an object; JSON lines when the file holds several objects."""
    text = read_document(path)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from jsonl_rows(path)
            return
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: broken JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    arrays = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if len(arrays) != 1:
        found = ", ".join(map(repr, arrays)) or "none"
        raise UserError(f"{path}: an object must hold exactly one array of rows; found {found}")
    for number, element in enumerate(value[arrays[0]], 1):
        yield _row(element, text if number == 1 else "", path, number)


class _Elements:
    """The elements of a JSON array, parsed one by one from a text stream."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self._path = path
        self._text = text
        self._buffer = ""
        self._at = 0
        self._lines_before = 0
        """Line ends in what was already dropped from the buffer."""
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space ('' at the end of the file)."""
        while True:
            found = _NOT_SPACE.search(self._buffer, self._at)
            if found:
                self._at = found.start()
                return found.group()
            self._at = len(self._buffer)
            if not self._fill():
                return ""

    def rows(self) -> Iterator[Row]:
        """Each element of the array that begins here, as a row."""
        self._at += 1
        number = 0
        if self.peek() != "]":
            while True:
                self.peek()
                start = self._at
                number += 1
                value = self._element(number)
                yield _row(value, self._buffer[start : self._at], self._path, number)
                mark = self.peek()
                if mark != ",":
                    break
                self._at += 1
        if self.peek() != "]":
            self._broken(number, self._at, "a ',' or the closing ']' is missing")
        self._at += 1
        if self.peek():
            self._broken(number, self._at, "something follows the closing ']'")

    def _element(self, number: int) -> Any:
        """The value that begins here. When it does not parse, more is read, up to the length limit, before giving up."""
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._buffer, self._at)
                return value
            except json.JSONDecodeError as error:
                if not self._fill():
                    self._broken(number, error.pos, error.msg)
                if len(self._buffer) - self._at > MAX_LINE_BYTES:
                    self._broken(number, error.pos, "or an element that is too long")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place(self._path, number)}: {_reason(error)}") from error

    def _fill(self) -> bool:
        """Read on (twice as much as is held, so that the work stays linear); False at the end of the file."""
        self._lines_before += self._buffer.count("\n", 0, self._at)
        self._buffer = self._buffer[self._at :]
        self._at = 0
        try:
            more = self._text.read(max(_CHUNK_CHARACTERS, len(self._buffer)))
        except UnicodeDecodeError as error:
            line = self._lines_before + self._buffer.count("\n") + 1
            raise UserError(
                f"{self._path}, after line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text; "
                "save the file as UTF-8"
            ) from error
        self._buffer += more
        return bool(more)

    def _broken(self, number: int, position: int, reason: str) -> NoReturn:
        line = self._lines_before + self._buffer.count("\n", 0, position) + 1
        column = position - self._buffer.rfind("\n", 0, position)
        raise UserError(f"{self._path}, row {number}, line {line}, column {column}: broken JSON: {reason}")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _name_of(value: Any) -> str:
    """What a JSON value is, in plain words."""
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
