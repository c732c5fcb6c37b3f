"""The bytes behind the tokens of a byte-level vocabulary.

A byte-level vocabulary writes each byte as one printable character (Radford et al., 2019): bytes that are printable in
Latin-1 stand for themselves, the other 68 are written as the characters from U+0100 on, in order. This module is the
way back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Core

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {b: chr(0x100 + i) for i, b in enumerate(_OTHERS)}
"""Byte -> the character that writes it."""
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}
"""The inverse."""

# What `bytes.decode("utf-8", "surrogateescape")` leaves where the bytes were not UTF-8: byte b becomes U+DC00 + b.
INVALID_UTF8 = re.compile("([\udc80-\udcff]+)")


def is_byte_level(core: Core) -> bool:
    """Whether the tokens stand for bytes. Published vocabularies may lack a few bytes that no UTF-8 text holds."""
    if core.decoder is None or not isinstance(core.model, models.BPE):
        return False
    decoder = json.loads(core.decoder.__getstate__())
    parts = [decoder, *decoder.get("decoders", [])]
    return any(part["type"] == "ByteLevel" for part in parts)


def bytes_of_ids(core: Core) -> dict[int, bytes]:
    """Id -> the bytes it stands for; tokens that were added whole (special tokens) stand for their own text."""
    table = {token_id: _bytes_of_token(token) for token, token_id in core.get_vocab(with_added_tokens=False).items()}
    return table | {token_id: token.content.encode() for token_id, token in _added(core)}


class BytesOfIds(dict[int, bytes]):
    """The same, each looked up when it is first asked for: a text needs few of the ids, and its first token none else.

    The id must be in the vocabulary.
    """

    def __init__(self, core: Core) -> None:
        """All that is known beforehand are the added tokens."""
        super().__init__((token_id, token.content.encode()) for token_id, token in _added(core))
        self._core = core

    def __missing__(self, token_id: int) -> bytes:
        found = _bytes_of_token(str(self._core.id_to_token(token_id)))
        self[token_id] = found
        return found


class _Latin1(dict[int, int | str]):
    """For `str.translate`: a character that writes a byte becomes that byte in Latin-1, and no other is in Latin-1."""

    def __missing__(self, character: int) -> str:
        return "\u0100"


_AS_LATIN1 = _Latin1((ord(character), byte) for character, byte in BYTE_OF_CHARACTER.items())


def _added(core: Core) -> Iterable[tuple[int, AddedToken]]:
    return core.get_added_tokens_decoder().items()


def _bytes_of_token(token: str) -> bytes:
    try:
        return token.translate(_AS_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()  # a word that was put into the vocabulary by hand
