"""A tokenizer's files read within bounds, each mistake named with its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trivium.errors import UserError

LARGEST_FILE = 256 << 20
"""Bytes; the largest published tokenizer.json is about a tenth of this."""
LARGEST_SIDE_FILE = 16 << 20
"""Bytes of tokenizer_config.json and its like."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file. UserError when it cannot be read or holds more than `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise UserError(f"{path} is larger than {limit >> 20} MiB, more than any tokenizer needs")
    return data


def read_text(path: Path, limit: int) -> str:
    """The whole file as text. UserError also when it is not UTF-8."""
    data = read_bytes(path, limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path, LARGEST_SIDE_FILE))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever the `tokenizers` library raises becomes a UserError of one line that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of the library (some damaged files cause one) is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def damage_named(source: Path) -> Iterator[None]:
    """Whatever goes wrong while a tokenizer is made from `source` becomes a UserError that names it."""
    try:
        with library_errors(f"{source.name} is not a tokenizer"):
            yield
    except UserError as error:
        raise UserError(f"{source.parent}: {error}") from error
