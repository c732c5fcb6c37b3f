"""Answers against the right ones: exact match and token F1 as SQuAD counts them (Rajpurkar et al., 2016), and labels.

Before they are compared, answers are lower-cased and lose punctuation (ASCII), the articles a, an, the, and all white
space but single blanks. With several right answers the best counts. All measures are means between 0 and 1. Invariant
its test checks: equal to a hand-worked table, and to the definition by multisets.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from trivium.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Truth = str | Sequence[str]


def normalised(answer: str) -> str:
    """An answer as it is compared."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def is_exact(answer: str, truth: str) -> float:
    """1 where the two are equal once normalised, else 0."""
    return float(normalised(answer) == normalised(truth))


def token_f1_of(answer: str, truth: str) -> float:
    """The harmonic mean of precision and recall of the words, each as often as it stands there.

    Where either has no word (an answer "there is none"), both must have none.
    """
    said, right = normalised(answer).split(), normalised(truth).split()
    if not said or not right:
        return float(said == right)
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right))


def exact_match(predictions: Sequence[str], references: Sequence[Truth]) -> float:
    """Share of answers that are right once normalised."""
    return _mean(is_exact, predictions, references)


def token_f1(predictions: Sequence[str], references: Sequence[Truth]) -> float:
    """Mean F1 of words."""
    return _mean(token_f1_of, predictions, references)


def label_accuracy(predictions: Sequence[str], references: Sequence[Truth]) -> float:
    """Share of answers that are a right label, but for case and white space around it."""
    return _mean(lambda said, right: float(said.strip().lower() == right.strip().lower()), predictions, references)


def _mean(score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Truth]) -> float:
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references: give one line for each")
    if not predictions:
        raise UserError("there are no predictions to score")
    best = (
        max((score(said, each) for each in ([right] if isinstance(right, str) else right)), default=0.0)
        for said, right in zip(predictions, references, strict=True)
    )
    return sum(best) / len(predictions)
