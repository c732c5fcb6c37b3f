"""The corpus that every machine has: the Python standard library that runs Trivium, `stdlib` as a data path.

Left out: tests (more than half of all the text, and much of it tables and deliberately broken files), what is generated
from tables (the character maps in `encodings`, `pydoc_data`) or for one machine (`_sysconfigdata`, `config-*`), and
installed packages. What is left is several MB of edited source with docstrings. It is read where it lies: nothing is
downloaded and nothing redistributed.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trivium.data.row import Row
from trivium.errors import UserError

STANDARD_LIBRARY = "stdlib"

_LEFT_OUT_FOLDERS = {
    "test", "tests", "idle_test", "testmock", "site-packages", "dist-packages", "__pycache__", "lib-dynload",
    "pydoc_data",
}  # fmt: skip
_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")
_TABLE_MARK = b"decoding_table"


def standard_library_files() -> list[Path]:
    """The .py files of the corpus, sorted by their place in the library."""
    root = standard_library_root()
    files = (file for file in root.rglob("*.py") if _belongs(file, root))
    found = sorted(files, key=lambda file: file.relative_to(root).parts)
    if not found:
        raise UserError(f"{STANDARD_LIBRARY}: this Python has no library sources in {root}; name a file or folder")
    return found


def standard_library_root() -> Path:
    """The folder of this Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def standard_library_rows() -> Iterator[Row]:
    """Each file of the corpus as a text row. The few that are empty or not UTF-8 are passed over."""
    root = standard_library_root()
    for file in standard_library_files():
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            yield Row({"text": text}, f"{STANDARD_LIBRARY}/{file.relative_to(root).as_posix()}", 1)


def _belongs(file: Path, root: Path) -> bool:
    parts = file.relative_to(root).parts
    if _LEFT_OUT_FOLDERS.intersection(parts) or any(part.startswith(_LEFT_OUT_PREFIXES) for part in parts):
        return False
    return parts[0] != "encodings" or _TABLE_MARK not in file.read_bytes()
