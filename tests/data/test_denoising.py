"""BART's noise: each kind alone leaves exactly what it should, and the shares and span lengths are the paper's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from data.samples import MASK_ID, byte_marks, text_ids
from trivium.data.denoising import add_noise, infill, span_lengths
from trivium.data.objectives_settings import DenoiseSettings
from trivium.data.order import draw_of

Ids = NDArray[np.int64]
NOTHING = {"infill_share": 0.0, "permute_sentences": False}
ENDS = byte_marks().sentence_ends
IDS = text_ids(500)


def noised(number: int, **settings: object) -> Ids:
    assert ENDS is not None
    chosen = DenoiseSettings.model_validate({**NOTHING, **settings})
    return add_noise(IDS, draw_of(3, number), chosen, mask_id=MASK_ID, sentence_ends=ENDS)


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(token in rest for token in part)


def test_without_noise_the_text_stays_as_it_is() -> None:
    assert np.array_equal(noised(0), IDS)


def test_token_masking() -> None:
    for number in range(20):
        found = noised(number, mask_share=0.2)
        assert len(found) == 500 and (found == MASK_ID).sum() == 100
        assert ((found == IDS) | (found == MASK_ID)).all()


def test_deletion() -> None:
    for number in range(20):
        found = noised(number, delete_share=0.2)
        assert len(found) == 400 and is_subsequence(found.tolist(), IDS.tolist())


def test_rotation() -> None:
    starts = set()
    for number in range(50):
        found = noised(number, rotate=True)
        (start,) = [k for k in range(500) if np.array_equal(np.roll(IDS, -k), found)]
        starts.add(start)
    assert len(starts) > 40


def sentences(ids: Ids) -> list[bytes]:
    assert ENDS is not None
    parts = np.split(ids, np.flatnonzero(np.isin(ids, ENDS)) + 1)
    return [bytes(part.astype(np.uint8)) for part in parts if len(part)]


def test_sentence_permutation() -> None:
    whole = sentences(IDS)
    orders = set()
    for number in range(20):
        found = noised(number, permute_sentences=True)
        # The unfinished last sentence may come before another and join it: compare pieces between ends.
        assert Counter(found.tolist()) == Counter(IDS.tolist())
        text = bytes(found.astype(np.uint8))
        assert all(sentence in text for sentence in whole)
        orders.add(text)
    assert len(orders) == 20
    broken = np.sort(IDS)
    assert not all(sentence in bytes(broken.astype(np.uint8)) for sentence in whole), "control: shuffled tokens"


def test_infilling_covers_exactly_its_share_and_keeps_the_rest_in_order() -> None:
    for number in range(100):
        found = noised(number, infill_share=0.3)
        kept = found[found != MASK_ID]
        assert len(kept) == 350 and is_subsequence(kept.tolist(), IDS.tolist())
        assert len(found) <= 500


def hidden_spans(ids: Ids, found: Ids) -> list[int]:
    """How many tokens each mask stands for; `ids` are all different, so that this is certain."""
    place, spans, run = 0, [], None
    for token in found.tolist():
        if token == MASK_ID:
            spans.append(0)
        else:
            gap = int(np.flatnonzero(ids == token)[0]) - place
            if gap:
                spans[-1] += gap  # of adjacent masks the last is taken to stand for all
            place += gap + 1
        run = token
    if run == MASK_ID:
        spans[-1] += len(ids) - place
    return spans


def test_what_is_missing_stands_where_a_mask_is() -> None:
    ids = np.arange(1000, 1250)
    for number in range(50):
        found = infill(ids, draw_of("spans", number), 0.3, 3.0, MASK_ID)
        assert sum(hidden_spans(ids, found)) == 75


def test_span_lengths_are_poisson() -> None:
    """Stated before: over 60,000 covered tokens the mean is 3 within 0.05, and lengths 0 to 6 have their Poisson shares
    within 0.01."""
    lengths = span_lengths(60_000, draw_of("poisson"), 3.0)
    assert lengths.sum() == 60_000
    assert lengths.mean() == pytest.approx(3.0, abs=0.05)
    shares = np.bincount(lengths, minlength=7)[:7] / len(lengths)
    expected = [np.exp(-3.0) * 3.0**k / np.prod(np.arange(1, k + 1)) for k in range(7)]
    assert shares == pytest.approx(expected, abs=0.01)


def test_masks_that_stand_for_nothing_never_make_a_text_longer() -> None:
    for number in range(300):
        tokens = 1 + number % 12
        found = span_lengths(tokens, draw_of("short", number), 0.3)
        assert found.sum() == tokens and len(found) <= tokens


def test_all_together_stay_within_the_length_of_the_text() -> None:
    shares = {"mask_share": 0.1, "delete_share": 0.1, "infill_share": 0.3}
    for number in range(50):
        assert 0 < len(noised(number, **shares, permute_sentences=True, rotate=True)) <= 500
