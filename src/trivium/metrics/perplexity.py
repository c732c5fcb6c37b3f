"""Perplexity and its tokenizer-independent relatives, from summed negative log-likelihoods.

With L the summed negative log-likelihood of a corpus in nats:

    perplexity       exp(L / tokens)        depends on the tokenizer: never compare it across tokenizers
    word_perplexity  exp(L / words)
    byte_perplexity  exp(L / bytes)
    bits_per_byte    L / (bytes ln 2)       log2 of byte_perplexity: what a compressor using the model reaches

A corpus is the ratio of sums over its documents (the convention of EleutherAI's lm-evaluation-harness), never the
mean of their perplexities. All arithmetic is fp64.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trivium.errors import UserError


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a corpus; smaller is better throughout."""

    perplexity: float
    """exp(nll): among how many equally likely tokens the model hesitates (inf when exp overflows)."""
    nll: float
    """Mean negative log-likelihood, nats per token."""
    num_tokens: int
    """Scored tokens."""
    bits_per_byte: float | None = None
    """Bits per UTF-8 byte of text; None when the number of bytes was not given."""
    byte_perplexity: float | None = None
    """exp(nats per byte); None when the number of bytes was not given."""
    word_perplexity: float | None = None
    """exp(nats per word); None when the number of words was not given."""

    def __float__(self) -> float:
        """The token perplexity."""
        return self.perplexity

    def to_json(self) -> dict[str, float | int | None]:
        """The keys every Trivium report uses: perplexity, bits_per_byte, nll, num_tokens."""
        return {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nll": self.nll,
            "num_tokens": self.num_tokens,
        }


def perplexity(
    nll_sum: float, num_tokens: int, *, num_bytes: int | None = None, num_words: int | None = None
) -> Perplexity:
    """Perplexities of a corpus whose `num_tokens` tokens cost `nll_sum` nats together.

    Raises UserError when nothing was scored, or when the sum is not a number (a model that returned NaN) or negative.
    """
    if math.isnan(nll_sum) or nll_sum < 0:
        raise UserError(
            f"perplexity: the summed negative log-likelihood is {nll_sum}; it must be a number of at least 0 "
            "(NaN means that the model's scores were not finite)"
        )
    counts = {"tokens": num_tokens, "bytes": num_bytes, "words": num_words}
    for unit, count in counts.items():
        if count is not None and count <= 0:
            raise UserError(f"perplexity: {count} {unit} were scored; give a text with at least one")
    return Perplexity(
        perplexity=_exp(nll_sum / num_tokens),
        nll=nll_sum / num_tokens,
        num_tokens=num_tokens,
        bits_per_byte=None if num_bytes is None else nll_sum / (num_bytes * math.log(2)),
        byte_perplexity=None if num_bytes is None else _exp(nll_sum / num_bytes),
        word_perplexity=None if num_words is None else _exp(nll_sum / num_words),
    )


def count_bytes(text: str) -> int:
    """UTF-8 bytes of `text`."""
    return len(text.encode())


def count_words(text: str) -> int:
    """Words of `text` as lm-evaluation-harness counts them: the pieces between runs of white space.

    White space at either end, or an empty text, counts one empty piece there; this is kept so that word perplexities
    can be compared with published ones.
    """
    return len(re.split(r"\s+", text))


def _exp(nats: float) -> float:
    """exp, with inf instead of an overflow error above about 709 nats."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
