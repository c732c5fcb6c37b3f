"""Masking: counts exact, shares as in the paper, specials untouched, words whole, the text given back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from data.samples import MASK_ID, byte_marks, text_ids
from trivium.data.batch import IGNORED
from trivium.data.masking import mask_tokens
from trivium.data.order import draw_of

Ids = NDArray[np.int64]
ORDINARY = np.arange(256)
N = 400
DRAWS = 300


def masked(ids: Ids, epoch: int = 0, **options: object) -> tuple[Ids, Ids]:
    options = {"mask_id": MASK_ID, "ordinary_ids": ORDINARY, **options}
    return mask_tokens(ids, draw_of(1, epoch), **options)  # type: ignore[arg-type]


def restored(inputs: Ids, targets: Ids) -> Ids:
    return np.where(targets == IGNORED, inputs, targets)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 333])
@pytest.mark.parametrize("words", [False, True])
def test_input_and_target_give_the_text_back(length: int, words: bool) -> None:
    ids = text_ids(length)
    starts = byte_marks().word_starts
    assert starts is not None
    for epoch in range(20):
        inputs, targets = masked(ids, epoch, word_starts=starts(ids.tolist()) if words else None)
        assert np.array_equal(restored(inputs, targets), ids)
        assert (targets != IGNORED).any()


def test_the_number_of_masked_tokens_is_exact() -> None:
    for length, wanted in ((1, 1), (3, 1), (7, 1), (10, 2), (20, 3), (100, 15), (N, 60)):
        assert (masked(text_ids(length))[1] != IGNORED).sum() == wanted


def test_80_10_10() -> None:
    """Stated before: over 18,000 masked tokens each share within 0.01 (four standard deviations are 0.012 at most)."""
    ids = text_ids(N)
    counts = np.zeros(3)
    for epoch in range(DRAWS):
        inputs, targets = masked(ids, epoch)
        chosen = targets != IGNORED
        counts += [
            (inputs[chosen] == MASK_ID).sum(),
            ((inputs != MASK_ID) & (inputs != ids))[chosen].sum(),
            (inputs == ids)[chosen].sum(),
        ]
    # One random token in 256 is the token itself.
    assert counts / counts.sum() == pytest.approx([0.8, 0.1 * 255 / 256, 0.1 + 0.1 / 256], abs=0.012)


def test_every_position_is_masked_equally_often() -> None:
    """Stated before: of 300 draws each position is masked 45 times; within 5 standard deviations (6.2) of it."""
    times = sum((masked(text_ids(N), epoch)[1] != IGNORED).astype(int) for epoch in range(DRAWS))
    assert np.abs(times - 0.15 * DRAWS).max() < 5 * np.sqrt(DRAWS * 0.15 * 0.85)


def test_special_tokens_are_never_masked_nor_drawn() -> None:
    ids = text_ids(N)
    ids[::3] = 270
    for epoch in range(50):
        inputs, targets = masked(ids, epoch, maskable=ids < 256, share=0.5)
        assert (inputs[::3] == 270).all() and (targets[::3] == IGNORED).all()
        assert ((inputs < 256) | (inputs == MASK_ID) | (inputs == 270)).all()


def is_whole(ids: Ids, targets: Ids) -> bool:
    """Whether each word is masked wholly or not at all."""
    word = np.cumsum((ids == 32) | (np.arange(len(ids)) == 0))
    chosen = targets != IGNORED
    return all(len(set(chosen[word == number])) == 1 for number in np.unique(word))


def test_whole_words() -> None:
    ids = text_ids(N)
    starts = [bool(flag) for flag in (ids == 32) | (np.arange(N) == 0)]
    counts = []
    for epoch in range(50):
        _, targets = masked(ids, epoch, word_starts=starts)
        assert is_whole(ids, targets)
        counts.append((targets != IGNORED).sum())
    assert max(counts) <= 60 and np.mean(counts) > 50
    assert not is_whole(ids, masked(ids)[1]), "control: single tokens tear words"


def assert_dynamic(draw: Callable[[int], tuple[Ids, Ids]]) -> None:
    """The same epoch masks alike, different epochs mask different places."""
    epochs = [draw(epoch)[1] for epoch in range(5)]
    assert all(np.array_equal(draw(epoch)[1], targets) for epoch, targets in enumerate(epochs))
    assert len({targets.tobytes() for targets in epochs}) == 5


def test_masks_differ_from_epoch_to_epoch_and_not_within_one() -> None:
    assert_dynamic(lambda epoch: masked(text_ids(N), epoch))


def test_control_static_masks_are_caught() -> None:
    with pytest.raises(AssertionError):
        assert_dynamic(lambda epoch: masked(text_ids(N), 0))
