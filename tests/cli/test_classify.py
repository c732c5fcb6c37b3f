"""`trivium classify`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown

LABELS = ("good", "bad", "so-so")


@pytest.mark.parametrize("family", ["bert", "bart", "llama"])
def test_classes(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", family, head="classification", labels=LABELS)
    found = result(capsys, "classify", model, "What a day!")
    assert found.keys() == {*MEMORY, "label", "probabilities"} and tuple(found["probabilities"]) == LABELS
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert found["probabilities"][found["label"]] == max(found["probabilities"].values())
    lines = shown(capsys, "classify", model, "What a day!").splitlines()
    assert len(lines) == 3 and lines[0].endswith(found["label"])
    assert result(capsys, "classify", model, "What a day!", "--pair", "And a night!") != found


def test_a_regression_gives_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", "bert", head="scalar")
    found = result(capsys, "classify", model, "What a day!")
    assert found.keys() == {*MEMORY, "label", "score"} and found["label"] == "score"
    assert shown(capsys, "classify", model, "What a day!") == f"score  {found['score']:.4f}\n"


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", "bert")
    assert refusal(capsys, "classify", model, "text").endswith("a scalar head; this one has a token head (lm)")
