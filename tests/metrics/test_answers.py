"""Exact match and token F1 against worked examples and the definition by multisets."""

from __future__ import annotations

import random

import pytest

from trivium.errors import UserError
from trivium.metrics.answers import exact_match, is_exact, label_accuracy, normalised, token_f1, token_f1_of


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("The  Cat!", "cat", 1, 1),
        ("an apple a day", "apple, day", 1, 1),
        ("cat", "dog", 0, 0),
        ("the big cat", "cat sat", 0, 0.5),  # one of two said, one of two right
        ("cat cat", "cat", 0, 2 / 3),  # the second counts once only
        ("", "", 1, 1),
        ("the", "", 1, 1),  # nothing is left of either
        ("cat", "", 0, 0),
        ("theatre", "atre", 0, 0),  # an article is a word, not a part of one
    ],
)
def test_worked_examples(said: str, right: str, exact: float, f1: float) -> None:
    assert is_exact(said, right) == exact
    assert token_f1_of(said, right) == pytest.approx(f1)


def by_definition(said: str, right: str) -> float:
    """2 p r / (p + r), with words struck off one another by hand."""
    words, left = normalised(said).split(), normalised(right).split()
    expected, shared = len(left), 0
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    if not words or not expected:
        return float(len(words) == expected)
    precision, recall = shared / len(words), shared / expected
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def test_equals_the_definition() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["a", "cat", "dog", "The", "sat.", "on"], k=draw.randint(0, 6))) for _ in range(200)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    assert [token_f1_of(*pair) for pair in pairs] == pytest.approx([by_definition(*pair) for pair in pairs])
    as_sets = [len({*said.split()} & {*right.split()}) for said, right in pairs]  # control: words counted once
    assert as_sets != [round(by_definition(*pair) * 6) for pair in pairs]


def test_the_best_of_several_right_answers_counts() -> None:
    assert exact_match(["cat", "dog"], [["a dog", "the cat"], "cat"]) == 0.5
    assert token_f1(["big cat"], [["dog", "cat"]]) == pytest.approx(2 / 3)
    assert label_accuracy([" Positive\n", "the cat"], ["positive", "cat"]) == 0.5, "an article is part of a label"


def test_mistakes() -> None:
    with pytest.raises(UserError, match="2 predictions for 1 references"):
        exact_match(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no predictions"):
        token_f1([], [])
