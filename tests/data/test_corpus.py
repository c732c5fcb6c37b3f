from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trivium.data import corpus
from trivium.errors import UserError


def test_the_standard_library_is_several_megabytes_of_python() -> None:
    rows = list(corpus.standard_library_rows())
    texts = [row.values["text"] for row in rows]
    assert len(rows) > 300 and 3_000_000 < sum(map(len, texts)) < 30_000_000
    names = [row.file for row in rows]
    assert names == sorted(names, key=lambda name: name.split("/")) and len(set(names)) == len(names)
    assert {"stdlib/json/decoder.py", "stdlib/argparse.py"} <= set(names)
    documented = sum('"""' in text for text in texts)
    assert documented > len(texts) / 2
    for name, text in list(zip(names, texts, strict=True))[::25]:
        ast.parse(text, name)


def test_tests_tables_and_installed_packages_are_left_out() -> None:
    names = [path.relative_to(corpus.standard_library_root()).as_posix() for path in corpus.standard_library_files()]
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "idle_test", "pydoc_data", "__pycache__"}
    assert not [name for name in names if name.startswith("_sysconfigdata")]
    assert "encodings/utf_8.py" in names and "encodings/cp1252.py" not in names


def test_a_python_without_sources_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "standard_library_root", lambda: tmp_path)
    with pytest.raises(UserError, match="stdlib: this Python has no library sources"):
        corpus.standard_library_files()
