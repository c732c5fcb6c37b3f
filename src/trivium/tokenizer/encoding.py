"""Texts to ids by one core of the `tokenizers` library, long texts in windows.

The library's memory grows with the text it is given. Where words depend on nothing before them and end soon (our own
word pattern), a long text is therefore encoded window by window, each cut at the beginning of a word; tokenizers with
another pattern are not cut.

Invariant: the ids are those of the whole text at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.tokenizer.learning import WORD_REACH, byte_level_words

WINDOW = 1 << 14
"""Characters of a long text that are encoded at a time."""


class TextEncoder:
    """One core and whether its texts can be cut."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._can_be_cut = _can_be_cut(core)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, nothing added. UserError for what is no text."""
        return self._in_windows(text) if self._is_long(text) else self._short([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        short = iter(self._short([text for text in texts if not self._is_long(text)]))
        return [self._in_windows(text) if self._is_long(text) else next(short) for text in texts]

    def _is_long(self, text: str) -> bool:
        return self._can_be_cut and isinstance(text, str) and len(text) > WINDOW

    def _short(self, texts: list[str]) -> list[list[int]]:
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {number} to encode is of type {type(text).__name__}, not a string")
        try:
            return [encoding.ids for encoding in self.core.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # the library's word for a string that UTF-8 cannot write
            raise UserError(_why_not_text(texts)) from error
        except Exception as error:  # and for one with words that no token stands for, not even an unknown one
            raise UserError(f"the tokenizer's vocabulary cannot write this text: {error}") from error

    def _in_windows(self, text: str) -> list[int]:
        """Encode a window, keep the words that cannot depend on what follows it, go on from there."""
        ids: list[int] = []
        start = 0
        while len(text) - start > WINDOW:
            try:
                encoding = self.core.encode(text[start : start + WINDOW], add_special_tokens=False)
            except TypeError as error:
                raise UserError(_why_not_text([text])) from error
            word = encoding.char_to_word(WINDOW - WORD_REACH)
            assert word is not None, "a byte-level tokenizer has a token for every character"
            characters, tokens = encoding.word_to_chars(word), encoding.word_to_tokens(word)
            assert characters is not None and tokens is not None and characters[0] > 0
            ids += encoding.ids[: tokens[0]]
            start += characters[0]
        return ids + self._short([text[start:]])[0]


def _can_be_cut(core: Core) -> bool:
    """Only our own word pattern is known to look neither back nor far ahead."""
    return (
        core.normalizer is None
        and core.pre_tokenizer is not None
        and core.pre_tokenizer.__getstate__() == byte_level_words().__getstate__()
        and all(
            not (token.lstrip or token.rstrip or token.single_word) and len(token.content) < WORD_REACH
            for token in core.get_added_tokens_decoder().values()
            if not (token.special and core.encode_special_tokens)  # those are not looked for
        )
    )


def _why_not_text(texts: Sequence[str]) -> str:
    """The message for strings with a surrogate, half a character that no UTF-8 can write."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return (
                f"text {number} holds U+{ord(text[error.start]):04X} at character {error.start}, half a surrogate "
                "pair: repair the JSON or the decoding it came from, or use encode_bytes"
            )
    return "the tokenizer takes a list of strings"
