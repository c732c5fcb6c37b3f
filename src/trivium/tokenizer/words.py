"""Where words begin among token ids, for masking whole words.

A word begins, as BERT's splitting has it, after white space, at every change between letters (or digits) and other
characters, and at every ideograph. WordPiece says it itself: pieces that go on are written `##piece`.

Ids may stop inside a character (byte-level vocabularies); the rest of a character never begins a word. Where only a
character's first bytes are in an id, their range of code points decides.

Invariant: with BERT's own vocabulary the words are those of BERT's splitting; with byte-level and SentencePiece
vocabularies no word is longer than one of those.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, NamedTuple

from tokenizers import Tokenizer as Core

SPACE = "\u2581"
"""How SentencePiece writes a space."""
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte that no piece holds."""

Class = Literal["space", "letter", "other", "ideograph"]

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class Edges(NamedTuple):
    """What a token looks like from outside: the classes of its first and its last character."""

    first: Class | None
    """None: it begins in the middle of a character, so it goes on."""
    last: Class | None
    """None: it holds nothing but the middle of a character."""


def edges_of(data: bytes) -> Edges:
    """The edges of a token that stands for `data`."""
    inner = data.lstrip(bytes(range(0x80, 0xC0)))
    if not inner:
        return Edges(None, None)
    first = _class_at(inner, 0) if len(inner) == len(data) else None
    end = max(place for place, byte in enumerate(inner) if not 0x80 <= byte < 0xC0)
    return Edges(first, _class_at(inner, end))


def edges_by_id(core: Core) -> dict[int, Edges]:
    """Id -> the edges of its token, for a WordPiece or SentencePiece vocabulary."""
    vocabulary = core.get_vocab(with_added_tokens=True)
    model = json.loads(core.model.__getstate__())
    prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
    edges = {}
    for token, token_id in vocabulary.items():
        byte = BYTE_PIECE.fullmatch(token)
        if prefix is None:
            data = bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
            edges[token_id] = edges_of(data)
        elif token.startswith(prefix):
            edges[token_id] = Edges(None, edges_of(token[len(prefix) :].encode()).last)
        else:
            edges[token_id] = edges_of(b" " + token.encode())
    return edges


def starts_of(tokens: Iterable[Edges | None]) -> list[bool]:
    """For each token whether a word begins there; None stands for a special token, which is a word of its own."""
    starts: list[bool] = []
    before: Class | None = None  # None: nothing, or a special token
    for edges in tokens:
        if edges is None:
            starts.append(True)
            before = None
            continue
        if edges.first is None:
            starts.append(before is None)
        else:
            starts.append(edges.first != before or edges.first in ("space", "ideograph"))
        before = edges.last or before or "other"
    return starts


def _class_at(data: bytes, place: int) -> Class:
    """The class of the character whose first byte is at `place`."""
    lead = data[place]
    length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    text = data[place : place + length].decode("utf-8", "ignore")
    return _class_of(text) if text else _class_of_lead(lead)


def _class_of(character: str) -> Class:
    if character.isspace():
        return "space"
    if any(low <= ord(character) <= high for low, high in _IDEOGRAPHS):
        return "ideograph"
    return "letter" if character.isalnum() or unicodedata.category(character)[0] == "M" else "other"


def _class_of_lead(lead: int) -> Class:
    """By the first byte of a character of several bytes alone."""
    if 0xE3 <= lead <= 0xE9:
        return "ideograph"
    return "letter" if lead < 0xE2 or 0xEA <= lead <= 0xED else "other"
