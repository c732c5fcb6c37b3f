"""JSON of unknown origin, read with bounds; and written."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trivium.errors import UserError


def read_json(path: Path, largest_bytes: int) -> Any:
    """What a regular file of bounded size holds; UserError that names the file for anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(largest_bytes + 1)
        if len(content) > largest_bytes:
            raise UserError(f"{path} is larger than {largest_bytes} bytes, which no such file needs to be")
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_object(path: Path, largest_bytes: int) -> dict[str, Any]:
    """The same where it must be an object."""
    values = read_json(path, largest_bytes)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return values


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Write it indented; for directories that are staged."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")
