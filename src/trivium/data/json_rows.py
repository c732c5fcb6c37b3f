"""JSON files as rows: JSON lines, an array of objects (read element by element), or an object with one such array.

Strict JSON (RFC 8259): `NaN`, `Infinity` and halves of surrogate pairs, which Python would let through, are refused,
since no later stage could use them. An array is never read as a whole, so its size is bounded by its largest element.
"""

from __future__ import annotations

import io
import json
import re
import sys
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
            yield _row(value, _may_hold_surrogates(line), path, number, line_number)


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


def _may_hold_surrogates(source: str, start: int = 0, stop: int = sys.maxsize) -> bool:
    """Whether the JSON text has escapes that could be halves of a surrogate pair (whole pairs are fine)."""
    return _SURROGATE.search(source, start, stop) is not None


def _row(value: Any, check_strings: bool, path: Path, number: int, line: int | None = None) -> Row:
    """A parsed value as a row; it must be an object whose strings are Unicode text."""
    where = place(path, number, line)
    if not isinstance(value, dict):
        raise UserError(f"{where}: {_name_of(value)} where an object with keys is needed")
    if check_strings:
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
    check_strings = _may_hold_surrogates(text)
    for number, element in enumerate(value[arrays[0]], 1):
        yield _row(element, check_strings, path, number)


class _Elements:
    """The elements of a JSON array, parsed one by one from a text stream."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self._path = path
        self._text = text
        self._buffer = ""
        self._at = 0
        self._lines_before = 0
        """Line ends in what was already dropped from the buffer."""
        self._column_before = 0
        """Characters dropped from the line on which the buffer begins."""
        self._start = 0
        """Where in the buffer the last element began."""

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
                number += 1
                value = self._element(number)
                escapes = _may_hold_surrogates(self._buffer, self._start, self._at)
                yield _row(value, escapes, self._path, number)
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
        """The value that begins here; when the buffer ends inside it, more is read, up to the length limit."""
        while True:
            self._start = self._at
            try:
                value, self._at = _DECODER.raw_decode(self._buffer, self._at)
                return value
            except json.JSONDecodeError as error:
                held, offset = len(self._buffer), error.pos - self._at
                # A cut literal, number or escape fails close to the end of the buffer; a cut string at its beginning.
                cut = error.pos > held - 16 or error.msg.startswith("Unterminated string")
                if not cut or held - self._at > MAX_LINE_BYTES or not self._fill():
                    self._broken(number, self._at + offset, error.msg)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place(self._path, number)}: {_reason(error)}") from error

    def _fill(self) -> bool:
        """Read on (as much as is held, so that the work stays linear, up to the limit); False at the file's end."""
        self._lines_before += self._buffer.count("\n", 0, self._at)
        line_end = self._buffer.rfind("\n", 0, self._at)
        self._column_before = self._at - line_end - 1 if line_end >= 0 else self._column_before + self._at
        self._buffer = self._buffer[self._at :]
        self._at = 0
        try:
            more = self._text.read(max(_CHUNK_CHARACTERS, min(len(self._buffer), MAX_LINE_BYTES - len(self._buffer))))
        except UnicodeDecodeError:
            for _ in read_lines(self._path):  # raises with the very line
                pass
            raise
        self._buffer += more
        return bool(more)

    def _broken(self, number: int, position: int, reason: str) -> NoReturn:
        line = self._lines_before + self._buffer.count("\n", 0, position) + 1
        line_end = self._buffer.rfind("\n", 0, position)
        column = position - line_end if line_end >= 0 else self._column_before + position + 1
        raise UserError(f"{self._path}, row {number}, line {line}, column {column}: broken JSON: {reason}")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _name_of(value: Any) -> str:
    """What a JSON value is, in plain words."""
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
