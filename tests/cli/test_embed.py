"""`trivium embed`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown
from trivium.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "model", "bert")


def test_vectors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, "embed", model, "A cat sleeps.", "A kitten naps.", "A cat sleeps.")
    assert found.keys() == {*MEMORY, "vectors", "dimensions"} and found["dimensions"] == 32
    first, second, third = found["vectors"]
    assert first == pytest.approx(third, abs=1e-6) and first != second
    assert sum(number**2 for number in second) == pytest.approx(1, abs=1e-5)
    file = tmp_path / "texts.txt"
    file.write_text("A cat sleeps.\nA kitten naps.\n")
    lines = result(capsys, "embed", model, "--file", file)["vectors"]
    assert lines[1] == pytest.approx(second, abs=1e-6) and len(lines) == 2
    table = shown(capsys, "embed", model, "A cat sleeps.", "A kitten naps.").splitlines()
    assert len(table) == 3 and table[0].split() == ["dimensions", "32"] and table[2].endswith("A kitten naps.")


def test_what_cannot_be_followed_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The vector of a sentence is a mean here, whatever the model's files say: on stderr, unless --quiet."""
    model = saved(tmp_path / "model", "bert", head="none")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (model / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    for quiet, noted in ((), True), (("--quiet",), False):
        assert main(["embed", str(model), "A cat sleeps.", "--json", *quiet]) == 0
        said = capsys.readouterr()
        assert ("embeddings here are the mean" in said.err) == ("reading texts: 1 text, " in said.err) == noted
        assert said.out.count("\n") == 1


def test_refusals(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give texts, or --file" in refusal(capsys, "embed", model)
    assert "give texts, or --file" in refusal(capsys, "embed", model, "a", "--file", tmp_path / "x")
    assert "absent.txt" in refusal(capsys, "embed", model, "--file", tmp_path / "absent.txt")
