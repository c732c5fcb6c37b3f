"""How well classes are told: accuracy, F1 of each class and its means, and Matthews' correlation.

F1 of a class is 2 tp / (2 tp + fp + fn), 0 where nothing of it was right. Its means: `macro`, all classes alike;
`micro`, over all decisions (which for one class a text is the accuracy); `weighted`, each as often as it is right. The
correlation is Gorodkin's R_K (2004), which for two classes is Matthews' (1975); 0 where it is undefined, because
everything was given one class or is of one.

Classes are told apart by equality. Those that only the predictions name count in `macro` with an F1 of 0.
Invariant its test checks: the values are those of the definitions by brute force.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others."""

    precision: float
    """Share of what was given this class that is of it."""
    recall: float
    """Share of what is of this class that was given it."""
    f1: float
    """Their harmonic mean."""
    support: int
    """How many are of it."""


def score_of(right: int, predicted: int, actual: int) -> ClassScore:
    """From counts: how many are `right` of those `predicted` and of those there are (`actual`)."""
    both = predicted + actual
    return ClassScore(
        right / predicted if predicted else 0.0,
        right / actual if actual else 0.0,
        2 * right / both if both else 0.0,
        actual,
    )


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Share of the predictions that equal their reference."""
    _check(predictions, references)
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def class_scores(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> dict[Hashable, ClassScore]:
    """The score of every class that occurs on either side, in the order of their names."""
    _check(predictions, references)
    right = Counter(p for p, r in zip(predictions, references, strict=True) if p == r)
    predicted, actual = Counter(predictions), Counter(references)
    return {name: score_of(right[name], predicted[name], actual[name]) for name in sorted(predicted | actual, key=str)}


def f1_macro(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The mean F1 of all classes."""
    scores = class_scores(predictions, references).values()
    return math.fsum(score.f1 for score in scores) / len(scores)


def f1_micro(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """F1 over all decisions; with one class a text, the accuracy."""
    return accuracy(predictions, references)


def f1_weighted(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The mean F1 of all classes, each weighed by how many are of it."""
    scores = class_scores(predictions, references).values()
    return math.fsum(score.f1 * score.support for score in scores) / len(references)


def matthews_correlation(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """R_K, -1 to 1: (c s - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), with c right of s, and p_k and
    t_k how often class k was given and is right; 0 where the root is."""
    _check(predictions, references)
    right = sum(p == r for p, r in zip(predictions, references, strict=True))
    size, predicted, actual = len(references), Counter(predictions), Counter(references)
    above = right * size - sum(predicted[name] * actual[name] for name in predicted)
    below = (size**2 - sum(n * n for n in predicted.values())) * (size**2 - sum(n * n for n in actual.values()))
    return above / math.sqrt(below) if below else 0.0


def majority_share(references: Sequence[Hashable]) -> float:
    """The accuracy of giving everything the commonest class."""
    _check(references, references)
    return max(Counter(references).values()) / len(references)


def classification(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> dict[str, Any]:
    """All of them, by the names of `trivium metric classification --json`; ValueError for unequal lengths or none."""
    per_class = {
        str(name): {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
        for name, s in class_scores(predictions, references).items()
    }
    return {
        "accuracy": accuracy(predictions, references),
        "f1_macro": f1_macro(predictions, references),
        "f1_micro": f1_micro(predictions, references),
        "f1_weighted": f1_weighted(predictions, references),
        "matthews_correlation": matthews_correlation(predictions, references),
        "majority_share": majority_share(references),
        "num_examples": len(references),
        "per_class": per_class,
    }


def _check(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if not references:
        raise ValueError("there is nothing to score: no references")
