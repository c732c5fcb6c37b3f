"""Ids one at a time to text, complete characters only.

Invariant (tested at every cut): what `push` and `finish` return, joined, is what `Tokenizer.decode` returns.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """Takes ids as they are generated and returns text as soon as it is certain."""

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes ("" while a character is unfinished)."""
        ...

    def finish(self) -> str:
        """What is left at the end: U+FFFD for each character that was never completed."""
        ...


class ByteStream:
    """For byte-level tokenizers: the bytes of each id go through an incremental UTF-8 decoder."""

    def __init__(self, bytes_of: Callable[[int], bytes], skipped: Collection[int]) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes."""
        data = self._bytes_of(token_id)
        return "" if token_id in self._skipped else self._decoder.decode(data)

    def finish(self) -> str:
        """What is left at the end."""
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """For the other tokenizers, whose pieces look different by what stands before them: decodes a sliding window.

    Exact wherever decoding more ids only adds text at the end.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._known = 0  # how many ids of the window have been shown already
        self._shown = ""  # their text

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._shown) or text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        self._window = self._window[self._known :]
        self._known, self._shown = len(self._window), self._decode(self._window)
        return new

    def finish(self) -> str:
        """What is left at the end."""
        return self._decode(self._window)[len(self._shown) :]
