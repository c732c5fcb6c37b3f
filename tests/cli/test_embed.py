"""`trivium embed`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import refusal, result, saved, shown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "model", "bert")


def test_vectors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, "embed", model, "A cat sleeps.", "A kitten naps.", "A cat sleeps.")
    assert found.keys() == {"vectors", "dimensions"} and found["dimensions"] == 32
    first, second, third = found["vectors"]
    assert first == pytest.approx(third, abs=1e-6) and first != second
    assert sum(number**2 for number in second) == pytest.approx(1, abs=1e-5)
    file = tmp_path / "texts.txt"
    file.write_text("A cat sleeps.\nA kitten naps.\n")
    lines = result(capsys, "embed", model, "--file", file)["vectors"]
    assert lines[1] == pytest.approx(second, abs=1e-6) and len(lines) == 2
    table = shown(capsys, "embed", model, "A cat sleeps.", "A kitten naps.").splitlines()
    assert len(table) == 3 and table[0].split() == ["dimensions", "32"] and table[2].endswith("A kitten naps.")


def test_refusals(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give texts, or --file" in refusal(capsys, "embed", model)
    assert "give texts, or --file" in refusal(capsys, "embed", model, "a", "--file", tmp_path / "x")
    assert "absent.txt" in refusal(capsys, "embed", model, "--file", tmp_path / "absent.txt")
