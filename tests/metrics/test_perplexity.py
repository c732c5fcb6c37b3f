"""Perplexities against 50-digit decimal arithmetic, and the refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext

import pytest

import trivium.metrics
from trivium.errors import UserError
from trivium.metrics.perplexity import Perplexity, count_bytes, count_words

CASES = [(2.0794415416798357, 3, 12, 2), (123456.789, 54321, 234567, 43210), (0.0, 7, 9, 3), (1e-9, 1, 1, 1)]


def check_against_decimals(perplexity: Callable[..., Perplexity]) -> None:
    """Every number equals its definition worked out with 50 digits, to 1e-14 relative."""
    getcontext().prec = 50
    ln2 = Decimal(2).ln()
    for nll_sum, tokens, num_bytes, words in CASES:
        exact = Decimal(nll_sum)
        got = perplexity(nll_sum, tokens, num_bytes=num_bytes, num_words=words)
        wanted = {
            "perplexity": (exact / tokens).exp(),
            "nll": exact / tokens,
            "bits_per_byte": exact / (num_bytes * ln2),
            "byte_perplexity": (exact / num_bytes).exp(),
            "word_perplexity": (exact / words).exp(),
        }
        for name, value in wanted.items():
            assert getattr(got, name) == pytest.approx(float(value), rel=1e-14, abs=1e-300), (name, nll_sum)


def test_equals_decimal_arithmetic() -> None:
    check_against_decimals(trivium.metrics.perplexity)


def test_the_check_sees_bytes_in_nats() -> None:
    """Broken control: bits per byte in nats, the commonest slip."""

    def broken(nll_sum: float, num_tokens: int, *, num_bytes: int, num_words: int) -> Perplexity:
        right = trivium.metrics.perplexity(nll_sum, num_tokens, num_bytes=num_bytes, num_words=num_words)
        return Perplexity(**{**vars(right), "bits_per_byte": nll_sum / num_bytes})

    with pytest.raises(AssertionError, match="bits_per_byte"):
        check_against_decimals(broken)


def test_byte_perplexity_is_two_to_the_bits_per_byte() -> None:
    got = trivium.metrics.perplexity(1234.5, 400, num_bytes=1600)
    assert got.byte_perplexity is not None and got.bits_per_byte is not None
    assert math.log2(got.byte_perplexity) == pytest.approx(got.bits_per_byte, rel=1e-14)


def test_corpus_is_a_ratio_of_sums() -> None:
    """A long cheap document and a short dear one: the mean of perplexities would be far off."""
    documents = [(100.0, 1000), (50.0, 10)]
    pooled = trivium.metrics.perplexity(sum(n for n, _ in documents), sum(t for _, t in documents))
    mean = sum(math.exp(n / t) for n, t in documents) / len(documents)
    assert pooled.perplexity == pytest.approx(math.exp(150 / 1010)) and mean > 60 * pooled.perplexity


def test_json_keys_and_float() -> None:
    got = trivium.metrics.perplexity(math.log(8) * 5, 5, num_bytes=10)
    assert list(got.to_json()) == ["perplexity", "bits_per_byte", "nll", "num_tokens"]
    assert float(got) == pytest.approx(8) and got.bits_per_byte == pytest.approx(1.5)
    assert trivium.metrics.perplexity(1.0, 1).bits_per_byte is None


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert trivium.metrics.perplexity(1e6, 1).perplexity == math.inf


@pytest.mark.parametrize("arguments", [(math.nan, 3), (-1.0, 3), (1.0, 0), (1.0, -2)])
def test_refuses_what_is_not_a_score(arguments: tuple[float, int]) -> None:
    with pytest.raises(UserError, match="perplexity:"):
        trivium.metrics.perplexity(*arguments)
    with pytest.raises(UserError, match="bytes"):
        trivium.metrics.perplexity(1.0, 1, num_bytes=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 1), ("one", 1), ("two words", 2), (" led", 2), ("a\n\n b\tc ", 4), ("a\u00a0b", 2)],
)
def test_words_are_counted_as_in_lm_eval(text: str, words: int) -> None:
    assert count_words(text) == words


def test_bytes_are_utf8() -> None:
    assert [count_bytes(text) for text in ("", "abc", "é", "日本", "🙂")] == [0, 3, 2, 6, 4]
