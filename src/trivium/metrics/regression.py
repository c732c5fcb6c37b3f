"""How well numbers are told: two correlations and the root of the mean squared error.

Pearson's is the covariance over the product of the deviations; Spearman's is Pearson's of the ranks, of which equal
values share the mean. Both are 0 where one side does not vary (they are undefined there).
Invariant its test checks: the values of scipy, or where it is absent, of closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Linear correlation, -1 to 1."""
    _check(predictions, references)
    first, second = _centred(predictions), _centred(references)
    below = math.sqrt(math.fsum(x * x for x in first)) * math.sqrt(math.fsum(y * y for y in second))
    if not below:
        return 0.0
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(first, second, strict=True)) / below))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Correlation of the ranks, -1 to 1."""
    return pearson(ranks(predictions), ranks(references))


def rmse(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Root of the mean squared difference, in the references' unit."""
    _check(predictions, references)
    return math.sqrt(math.fsum((p - r) ** 2 for p, r in zip(predictions, references, strict=True)) / len(references))


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    first = 0
    while first < len(order):
        end = first
        while end < len(order) and values[order[end]] == values[order[first]]:
            end += 1
        for place in order[first:end]:
            found[place] = (first + 1 + end) / 2
        first = end
    return found


def _centred(values: Sequence[float]) -> list[float]:
    if min(values) == max(values):  # rounding in the mean must not make a constant vary
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _check(predictions: Sequence[float], references: Sequence[float]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if not references:
        raise ValueError("there is nothing to score: no references")
