from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from trivium.data.split import is_held_out, split_tail

DOCUMENTS = [f"document {number}" for number in range(4000)]


def assert_stable(side_of: Callable[[list[str]], dict[str, bool]]) -> None:
    """No document changes sides when others come, go or are shuffled, and copies are together."""
    whole = side_of(DOCUMENTS)
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
    for others in (shuffled, DOCUMENTS[1000:], ["new", *DOCUMENTS], DOCUMENTS + DOCUMENTS[:10]):
        sides = side_of(others)
        assert all(sides[text] == whole[text] for text in others if text in whole)


def test_the_side_of_a_document_depends_on_it_alone() -> None:
    assert_stable(lambda texts: {text: is_held_out(text, 0.1) for text in texts})


def test_a_split_by_position_is_caught() -> None:
    """Broken control."""
    with pytest.raises(AssertionError):
        assert_stable(lambda texts: {text: number % 10 == 0 for number, text in enumerate(texts)})


def test_the_share_is_as_asked_and_grows() -> None:
    held_out = {fraction: {t for t in DOCUMENTS if is_held_out(t, fraction)} for fraction in (0.0, 0.01, 0.1, 0.5)}
    for fraction, texts in held_out.items():
        spread = (len(DOCUMENTS) * fraction * (1 - fraction)) ** 0.5
        assert abs(len(texts) - len(DOCUMENTS) * fraction) <= 4 * spread
    assert held_out[0.01] < held_out[0.1] < held_out[0.5] and not held_out[0.0]


def test_this_split_never_changes() -> None:
    """Runs made by an earlier version must not find their held-out text in training."""
    held_out = [number for number in range(60) if is_held_out(f"document {number}", 0.1)]
    assert held_out == [16, 19, 22, 27, 28, 36, 58]


def test_the_tail_is_the_end_of_the_text() -> None:
    assert split_tail("0123456789", 0.1) == ("012345678", "9")
    assert split_tail("abc", 0.0) == ("abc", "")
    for length in range(50):
        text = "x" * length
        head, tail = split_tail(text, 0.1)
        assert head + tail == text and len(head) == int(length * 0.9)
