"""What a data path means: a file, a folder, a glob, or a set on the Hugging Face hub.

What exists on disk comes first; a hub id is `owner/name`, optionally with `:config` and `@split`. Files come in an
order that depends on their names only, so that every machine reads the same rows in the same order.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from trivium.data.streams import COMPRESSIONS
from trivium.errors import UserError, nearest

# Which reader reads which extension; each may be followed by .gz or .zst.
KINDS = {
    ".txt": "text",
    ".md": "document",
    ".py": "document",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

_HUB_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.%:+\[\]-]+))?"
)


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hugging Face hub."""

    name: str
    """`owner/name`."""
    config: str | None = None
    """Which of its configurations (None: its only one)."""
    split: str = "train"
    """Which of its splits."""


def kind_of(path: Path) -> str | None:
    """Which reader a file needs, by its name; None when the extension is not one of `KINDS`."""
    name = path.name.lower()
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    return KINDS.get(Path(name).suffix)


def locate(path: str | Path) -> list[Path] | HubSet:
    """The files (at least one, in fixed order) or the hub set that `path` names; a UserError when it names nothing."""
    text = str(path)
    target = Path(os.path.expanduser(text))  # noqa: PTH111 (leaves the home of an unknown user alone)
    if target.is_file():
        return [_checked(target)]
    if target.is_dir():
        return _files_under(target)
    if target.exists():
        raise UserError(f"{text}: neither a file nor a folder")
    if any(mark in text for mark in "*?["):
        matches = glob.glob(str(target), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(map(Path, matches), key=lambda match: match.parts)
        files = [_checked(match) for match in found if match.is_file()]
        if not files:
            raise UserError(f"{text}: no file matches")
        return files
    hub = _HUB_ID.fullmatch(text)
    if hub and not target.parent.exists() and kind_of(target) is None:
        return HubSet(hub["name"], hub["config"], hub["split"] or "train")
    raise UserError(_missing(text, target))


def _checked(path: Path) -> Path:
    """`path`, when its extension is known."""
    if kind_of(path) is None:
        extension = Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix
        guess = nearest(extension, KINDS)
        hint = f"did you mean {guess}? " if guess else ""
        raise UserError(f"{path}: unknown kind of file; {hint}known: {' '.join(KINDS)} (each also .gz or .zst)")
    return path


def _files_under(folder: Path) -> list[Path]:
    """All files of a known kind below a folder, hidden ones left out, sorted by their path's parts."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(parent) / name for name in names if not name.startswith("."))
        found.extend(file for file in files if kind_of(file) is not None and file.is_file())
    if not found:
        raise UserError(f"{folder}: holds no file of a known kind ({' '.join(KINDS)}, each also .gz or .zst)")
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be passed over in silence."""
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _missing(text: str, target: Path) -> str:
    """The line for a path that is not there, with the nearest name that is."""
    parent, name = target.parent, target.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    guess = nearest(name, sorted(entry.name for entry in parent.iterdir()))
    if guess:
        return f"{text}: no such file or folder; did you mean {parent / guess}?"
    return f"{text}: no such file or folder (there is no {name!r} in {parent.absolute()})"
