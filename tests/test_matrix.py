"""A copy without its support matrix says how to get one; what a matrix shows is tested in `house/test_matrix.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium import matrix
from trivium.cli import main


def test_a_copy_without_a_matrix_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "FILE", tmp_path / "matrix.json")
    assert main(["matrix"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == "trivium: this copy has no support matrix: run `make matrix`\n"
    found = {"tables": [{"title": "T", "columns": ["c"], "rows": {"r": {"c": {"state": "yes"}}}}]}
    (tmp_path / "matrix.json").write_text(json.dumps(found))  # the control: one that is there is shown
    assert main(["matrix"]) == 0
    assert capsys.readouterr().out.split() == ["T", "c", "r", "yes"]
