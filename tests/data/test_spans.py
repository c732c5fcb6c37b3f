"""Spans: exact reconstruction, lengths by the paper's formula, every segmentation equally likely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from data.samples import SENTINELS, text_ids
from trivium.data.order import draw_of
from trivium.data.spans import Cut, cut_of, cut_spans, end_mask, noise_mask

Ids = NDArray[np.int64]
Cutter = Callable[[Ids, NDArray[np.bool_], Sequence[int]], tuple[Ids, Ids]]


def put_together(source: Ids, target: Ids, sentinels: Sequence[int] = SENTINELS) -> list[int]:
    """The text: each sentinel of the source replaced by what follows it in the target. Written apart from the code."""
    spans: dict[int, list[int]] = {}
    for token in target.tolist():
        if token in sentinels:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    text: list[int] = []
    for token in source.tolist():
        text += spans.pop(token) if token in sentinels else [token]
    assert not spans
    return text


def assert_reconstructs(cutter: Cutter) -> None:
    for number in range(200):
        ids = text_ids(2 + number, start=number)
        draw = draw_of("reconstruct", number)
        mask = noise_mask(len(ids), cut_of(len(ids), 0.15, 3.0), draw)
        source, target = cutter(ids, mask, SENTINELS)
        assert put_together(source, target) == ids.tolist()
        used = [token for token in source if token in SENTINELS]
        assert used == list(SENTINELS[: len(used)]), "sentinels come in their order, from the first"


def test_source_and_target_give_the_text_back() -> None:
    assert_reconstructs(cut_spans)


def off_by_one(ids: Ids, mask: NDArray[np.bool_], sentinels: Sequence[int]) -> tuple[Ids, Ids]:
    """The target's sentinels are numbered from 1, the source's from 0."""
    source, _ = cut_spans(ids, mask, sentinels)
    _, target = cut_spans(ids, mask, sentinels[1:])
    return source, target


def shifted(ids: Ids, mask: NDArray[np.bool_], sentinels: Sequence[int]) -> tuple[Ids, Ids]:
    """The target is cut by a mask that lies one place further on."""
    return cut_spans(ids, mask, sentinels)[0], cut_spans(ids, np.roll(mask, 1), sentinels)[1]


@pytest.mark.parametrize("broken", [off_by_one, shifted])
def test_control_careless_cutting_is_caught(broken: Cutter) -> None:
    with pytest.raises((AssertionError, KeyError, UnboundLocalError)):
        assert_reconstructs(broken)


def test_hand_worked() -> None:
    ids = np.array([10, 11, 12, 13, 14, 15, 16])
    mask = np.array([0, 0, 1, 1, 0, 0, 1], dtype=bool)
    source, target = cut_spans(ids, mask, (90, 91))
    assert source.tolist() == [10, 11, 90, 14, 15, 91]
    assert target.tolist() == [90, 12, 13, 91, 16]
    with pytest.raises(ValueError, match="2 spans need as many sentinels"):
        cut_spans(ids, mask, (90,))


def test_lengths_follow_the_paper() -> None:
    """T5: with 15 % in spans of 3, 568 tokens make a source of 512 and a target of 114, the end marks included."""
    cut = cut_of(568, 0.15, 3.0)
    assert (568 - cut.tokens + cut.spans + 1, cut.tokens + cut.spans + 1) == (512, 114)
    for length in range(2, 400):
        cut = cut_of(length, 0.15, 3.0)
        assert cut.tokens == min(max(round(length * 0.15), 1), length - 1)
        mask = noise_mask(length, cut, draw_of(length))
        runs = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
        assert (mask.sum(), len(runs)) == cut and not mask[0] and mask[-1]


def test_statistics_of_spans() -> None:
    """Stated before: over 2,000 texts of 512 the share is 0.150 exactly rounded, the mean span within 0.05 of 3."""
    cut = cut_of(512, 0.15, 3.0)
    assert cut.tokens / 512 == pytest.approx(0.15, abs=0.5 / 512)
    assert cut.tokens / cut.spans == pytest.approx(3.0, abs=0.05)
    lengths: Counter[int] = Counter()
    for number in range(2000):
        mask = noise_mask(512, cut, draw_of("statistics", number))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        lengths.update((edges[1::2] - edges[::2]).tolist())
    # 77 tokens parted into 26: the first part is 1 with probability 25 / 76, then as balls and walls have it.
    share_of_ones = lengths[1] / sum(lengths.values())
    assert share_of_ones == pytest.approx((cut.spans - 1) / (cut.tokens - 1), abs=0.01)


def test_every_segmentation_is_equally_likely() -> None:
    """Stated before: 3 of 8 tokens in 2 spans can be cut in 2 x 4 ways; of 8,000 draws each takes 1,000 +- 150."""
    counts = Counter(noise_mask(8, Cut(3, 2), draw_of("even", number)).tobytes() for number in range(8000))
    assert len(counts) == 8
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_the_end_is_cut_with_the_mean_share_asked_for() -> None:
    """Stated before: the mean share over 4,000 texts is 0.25 within 0.01; one span, at the end."""
    shares = []
    for number in range(4000):
        mask = end_mask(200, 0.25, draw_of("end", number))
        assert mask[-1] and not mask[0] and (np.diff(mask.astype(int)) == 1).sum() == 1
        shares.append(mask.mean())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.01)
    assert end_mask(2, 0.9, draw_of(0)).tolist() == [False, True]
