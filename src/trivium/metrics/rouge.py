"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (Lin, 2004), as the package `rouge-score` computes them.

ROUGE-N counts shared n-grams; ROUGE-L the longest common subsequence (LCS) of all tokens; ROUGE-Lsum the union, over
the lines of a prediction, of an LCS with each line of the reference. Precision divides by the prediction, recall by the
reference. A token is a run of a-z and 0-9 after lower-casing, so that accents and other scripts vanish, as they do in
the reference implementation; longer ones are stemmed (Porter) unless told otherwise.

Departs from the package in the mean: theirs is the median of bootstrap means and differs from run to run; ours is the
mean over pairs. Invariant its test checks: equal to `rouge-score` to 1e-12 for each pair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from trivium.errors import UserError

WORD = re.compile(r"[a-z0-9]+")
# Shorter tokens are never stemmed.
SHORTEST_STEMMED = 4


class Score(NamedTuple):
    """One pair under one kind of ROUGE; each between 0 and 1."""

    precision: float
    recall: float
    fmeasure: float


def rouge(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, stem: bool = True
) -> dict[str, dict[str, float]]:
    """The mean of each kind over all pairs: {"rouge1": {"precision", "recall", "fmeasure"}, "rouge2", "rougeL",
    "rougeLsum"}.

    A prediction may have several references: for each kind the one with the best F counts. Lines of a summary are its
    sentences for ROUGE-Lsum. Raises UserError when there is nothing to score or the lengths differ.
    """
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} predictions for {len(references)} references: give one line for each")
    if not predictions:
        raise UserError("there are no predictions to score")
    pairs = [
        rouge_pair(prediction, reference, stem=stem)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {
        kind: {name: sum(getattr(pair[kind], name) for pair in pairs) / len(pairs) for name in Score._fields}
        for kind in KINDS
    }


def rouge_pair(prediction: str, reference: str | Sequence[str], *, stem: bool = True) -> dict[str, Score]:
    """All kinds for one prediction and its reference, or the best of several."""
    targets = [reference] if isinstance(reference, str) else reference
    if not targets:
        raise UserError("a prediction has no reference")
    return {
        kind: max((score(prediction, target, stem) for target in targets), key=lambda found: found.fmeasure)
        for kind, score in KINDS.items()
    }


def tokens_of(text: str, stem: bool) -> list[str]:
    """The tokens of a text."""
    words = WORD.findall(text.lower())
    if not stem:
        return words
    return [
        found for word in words if WORD.fullmatch(found := _stemmed(word) if len(word) >= SHORTEST_STEMMED else word)
    ]


@lru_cache(maxsize=1 << 16)
def _stemmed(word: str) -> str:
    return str(_stemmer()(word))


@lru_cache(maxsize=1)
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem  # type: ignore[no-any-return]


def _score(shared: int, predicted: int, expected: int) -> Score:
    precision, recall = shared / max(predicted, 1), shared / max(expected, 1)
    total = precision + recall
    return Score(precision, recall, 2 * precision * recall / total if total else 0.0)


def _rouge_n(n: int) -> Callable[[str, str, bool], Score]:
    def grams(text: str, stem: bool) -> Counter[tuple[str, ...]]:
        tokens = tokens_of(text, stem)
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    def score(prediction: str, reference: str, stem: bool) -> Score:
        predicted, expected = grams(prediction, stem), grams(reference, stem)
        return _score((predicted & expected).total(), predicted.total(), expected.total())

    return score


def _rouge_l(prediction: str, reference: str, stem: bool) -> Score:
    from rapidfuzz.distance import LCSseq

    predicted, expected = tokens_of(prediction, stem), tokens_of(reference, stem)
    return _score(LCSseq.similarity(predicted, expected), len(predicted), len(expected))


def _rouge_lsum(prediction: str, reference: str, stem: bool) -> Score:
    predicted, expected = _lines(prediction, stem), _lines(reference, stem)
    left = [Counter(token for line in lines for token in line) for lines in (predicted, expected)]
    hits = 0
    for line in expected:
        for index in sorted(set().union(*(_common_places(line, other) for other in predicted))):
            token = line[index]
            if all(counts[token] > 0 for counts in left):
                hits += 1
                for counts in left:
                    counts[token] -= 1
    return _score(hits, sum(map(len, predicted)), sum(map(len, expected)))


def _lines(text: str, stem: bool) -> list[list[str]]:
    return [tokens_of(line, stem) for line in text.split("\n") if line]


def _common_places(reference: list[str], prediction: list[str]) -> set[int]:
    """Places in `reference` of one LCS, the very one that the reference implementation takes among equals."""
    lengths = [[0] * (len(prediction) + 1) for _ in range(len(reference) + 1)]
    for i, token in enumerate(reference, 1):
        above, row = lengths[i - 1], lengths[i]
        for j, other in enumerate(prediction, 1):
            row[j] = above[j - 1] + 1 if token == other else max(above[j], row[j - 1])
    places: set[int] = set()
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


KINDS: dict[str, Callable[[str, str, bool], Score]] = {
    "rouge1": _rouge_n(1),
    "rouge2": _rouge_n(2),
    "rougeL": _rouge_l,
    "rougeLsum": _rouge_lsum,
}
