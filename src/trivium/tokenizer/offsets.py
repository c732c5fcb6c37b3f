"""Where in a text its ids stand: for what is told of words and spans, and must be found again in the text.

Each id gets the characters it was made from, without white space at either end: (start, stop) in the text as it was
given, whatever the tokenizer changes in it (case, accents, spaces). Ids that hold no character of the text, such as a
space put before it, get an empty range. Parts of one character all get that character.

Invariant its test checks: the ids are those of `Tokenizer.encode`, for each kind of tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer as Core

from trivium.tokenizer.bounded import library_errors
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.variants import plain_core


class Placed(NamedTuple):
    """A text's ids and where each of them stands."""

    ids: list[int]
    ranges: list[tuple[int, int]]
    """(start, stop) of each id, in characters of the text; start == stop: none of it."""


class PlaceEncoder:
    """A tokenizer that also says where its ids stand; made once for many texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._core = plain_core(Core.from_str(tokenizer.to_json()))

    def encode(self, text: str) -> Placed:
        """The ids of one text, nothing added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Placed]:
        """The ids of each text, on all cores. UserError for a text that the vocabulary cannot write."""
        with library_errors("the tokenizer's vocabulary cannot write this text"):
            found = self._core.encode_batch(list(texts), add_special_tokens=False)
        return [
            Placed(each.ids, [_trimmed(text, start, stop) for start, stop in each.offsets])
            for text, each in zip(texts, found, strict=True)
        ]


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """The range without white space at its ends."""
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return start, stop
