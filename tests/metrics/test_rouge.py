"""ROUGE equals the package `rouge-score`, pair by pair, and the values of ROUGE-1.5.5."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from trivium import metrics
from trivium.errors import UserError
from trivium.metrics import rouge as rouge_function
from trivium.metrics.rouge import KINDS, rouge_pair

scorer = pytest.importorskip("rouge_score.rouge_scorer")
WORDS = [
    "the",
    "running",
    "cats",
    "dogs",
    "2023",
    ".",
    "naïve",
    "日本",
    "🙂",
    "flies",
    "happily",
    "a",
    "\n",
    "Jumped",
    "ponies",
]


def random_text(pick: random.Random) -> str:
    return " ".join(pick.choice(WORDS) for _ in range(pick.randint(0, 25)))


def largest_difference(seed: int, pairs: int, stem: bool, mistake: str = "") -> float:
    """Between ours and the package's, over random pairs; `mistake` is put into our predictions."""
    pick = random.Random(seed)
    reference_scorer = scorer.RougeScorer(list(KINDS), use_stemmer=stem)
    worst = 0.0
    for _ in range(pairs):
        prediction, reference = random_text(pick), random_text(pick)
        theirs = reference_scorer.score(reference, prediction)
        ours = rouge_pair(prediction + mistake, reference, stem=stem)
        for kind, found in ours.items():
            worst = max(worst, *(abs(a - b) for a, b in zip(found, theirs[kind], strict=True)))
    return worst


@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_the_package(stem: bool) -> None:
    assert largest_difference(0, 1000, stem) <= 1e-12


def test_broken_control_one_word_more_is_seen() -> None:
    assert largest_difference(0, 20, True, " zebra") > 1e-3


def test_worked_example() -> None:
    found = rouge_pair("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found["rouge1"].fmeasure == pytest.approx(0.7059, abs=1e-4)
    assert found["rougeL"] == pytest.approx((0.625, 0.5556, 0.5882), abs=1e-4)


def test_of_several_references_the_best_counts() -> None:
    texts = ["cats sleep", "dogs run fast", "birds"]
    reference_scorer = scorer.RougeScorer(list(KINDS), use_stemmer=True)
    theirs = reference_scorer.score_multi(texts, "dogs run")
    assert {kind: tuple(score) for kind, score in rouge_pair("dogs run", texts).items()} == {
        kind: pytest.approx(tuple(score)) for kind, score in theirs.items()
    }


def test_means_over_pairs() -> None:
    result = metrics.rouge(["a b", "c"], ["a b", "d"])
    assert result["rouge1"] == {"precision": 0.5, "recall": 0.5, "fmeasure": 0.5}
    assert set(result) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UserError, match="2 predictions for 1 references"):
        rouge_function(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no predictions"):
        rouge_function([], [])


def test_published_fixtures(shared_data: Path) -> None:
    """Artificial words that exercise tokenizing and stemming."""
    folder = shared_data / "rouge"
    targets = (folder / "target_first500.txt").read_text().splitlines()
    predictions = (folder / "prediction_first500.txt").read_text().splitlines()
    reference_scorer = scorer.RougeScorer(list(KINDS), use_stemmer=True)
    for prediction, target in zip(predictions, targets, strict=True):
        theirs, ours = reference_scorer.score(target, prediction), rouge_pair(prediction, target)
        assert all(ours[kind] == pytest.approx(tuple(theirs[kind]), abs=1e-12) for kind in KINDS)
