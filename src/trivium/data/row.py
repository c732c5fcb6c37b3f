"""One row of a data file, with the place it came from, so that every complaint can name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a reader yields: named values and where they stand."""

    values: Mapping[str, Any]
    """Column or key to value."""
    file: str
    """The file (or hub set) the row is from."""
    number: int
    """Counted from 1 within the file; headers and blank lines are not counted."""
    line: int | None = None
    """The line of the file on which the row begins, where the format has lines."""

    @property
    def where(self) -> str:
        """`data.csv, row 3 (line 4)`: the beginning of every message about this row."""
        return place(self.file, self.number, self.line)


def place(file: str | Path, number: int, line: int | None = None) -> str:
    """File and row, and the line where it is not the same number."""
    return f"{file}, row {number}" + (f" (line {line})" if line not in (None, number) else "")
