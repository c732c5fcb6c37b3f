"""BLEU is sacrebleu's, with its signature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium import metrics
from trivium.errors import UserError


def test_a_perfect_translation_has_100() -> None:
    result = metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert result["bleu"] == pytest.approx(100.0)
    assert result["brevity_penalty"] == 1.0 and len(result["precisions"]) == 4
    assert result["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert metrics.bleu(["the cat sat"], ["the cat sat on the mat"])["bleu"] < 100


def test_several_references() -> None:
    assert metrics.bleu(["a b c d e"], [["x", "a b c d e"]])["bleu"] == pytest.approx(100.0)
    with pytest.raises(UserError, match="same number of references"):
        metrics.bleu(["a", "b"], [["a"], ["b", "c"]])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UserError, match="1 predictions for 2 references"):
        metrics.bleu(["a"], ["a", "b"])
    with pytest.raises(UserError, match="no predictions"):
        metrics.bleu([], [])


def test_scores_of_published_systems(shared_data: Path) -> None:
    """WMT17 English-German: the scores recorded in sacrebleu's own tests."""
    folder = shared_data / "wmt17-en-de"
    expected = json.loads((folder / "expected.json").read_text())
    references = (folder / "newstest2017.reference.de").read_text(encoding="utf-8").splitlines()
    for name, scores in expected.items():
        system = (folder / name).read_text(encoding="utf-8").splitlines()
        assert metrics.bleu(system, references)["bleu"] == pytest.approx(scores["bleu_mteval_v13a"], abs=0.005)
