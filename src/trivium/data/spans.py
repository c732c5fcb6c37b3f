"""Spans cut out of a text: T5's span corruption, and the cuts of UL2 (Raffel et al., 2020, 3.1.4; Tay et al., 2022).

Of n tokens, noise = round(share n) are cut out (at least 1, at most n - 1), in k = round(noise / mean span) spans (at
least one). Both the cut tokens and those that stay are parted into k pieces at random, every way of parting equally
likely, and the pieces alternate, beginning with one that stays; so the numbers of tokens and of spans are exact, and
lengths follow from n alone:
  source: the text with one sentinel for each span            n - noise + k
  target: each sentinel followed by the span it stands for        noise + k
The i-th span has the i-th sentinel. An S cut of UL2 is the same with a single span at the end of the text.

Invariant its test checks: putting the spans of the target in place of the sentinels of the source gives the text back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Cut(NamedTuple):
    """How much is cut out of a text."""

    tokens: int
    """How many tokens."""
    spans: int
    """In how many spans."""


def cut_of(length: int, noise_share: float, mean_span: float) -> Cut:
    """The exact numbers for a text of `length` tokens (2 at least)."""
    if length < 2:
        raise ValueError("a text of fewer than two tokens cannot be cut")
    tokens = min(max(round(length * noise_share), 1), length - 1)
    spans = min(max(round(tokens / mean_span), 1), tokens, length - tokens)
    return Cut(tokens, spans)


def noise_mask(length: int, cut: Cut, draw: np.random.Generator) -> Mask:
    """(length,): which tokens are cut out; True in exactly `cut.tokens` places, in `cut.spans` runs."""
    cut_lengths = _parts(cut.tokens, cut.spans, draw)
    kept_lengths = _parts(length - cut.tokens, cut.spans, draw)
    lengths = np.stack([kept_lengths, cut_lengths], axis=1).reshape(-1)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def end_mask(length: int, noise_share: float, draw: np.random.Generator) -> Mask:
    """(length,): the end of the text; its share is drawn evenly from 0 to twice `noise_share`, at most all but one."""
    most = min(length - 1, max(1, round(2 * noise_share * length)))
    mask = np.zeros(length, dtype=bool)
    mask[length - int(draw.integers(1, most + 1)) :] = True
    return mask


def cut_spans(ids: Ids, mask: Mask, sentinels: Sequence[int]) -> tuple[Ids, Ids]:
    """(source, target) of a text whose masked spans are cut out, without marks at their ends."""
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    places = np.flatnonzero(starts)
    marks = np.asarray(sentinels[: len(places)], dtype=np.int64)
    if len(marks) < len(places):
        raise ValueError(f"{len(places)} spans need as many sentinels")
    source = ids.copy()
    source[places] = marks
    target = np.insert(ids, places, marks)
    in_target = np.insert(mask, places, True)
    return source[~mask | starts], target[in_target]


def _parts(total: int, parts: int, draw: np.random.Generator) -> Ids:
    """`total` parted into `parts` pieces of one at least, every way equally likely."""
    ends = np.sort(draw.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], ends, [total]])).astype(np.int64)
