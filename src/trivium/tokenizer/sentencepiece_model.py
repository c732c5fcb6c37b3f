"""SentencePiece's `.model` files, read without its package.

The file is one protocol buffer message (`ModelProto`): 1 pieces {1 text, 2 score, 3 type}, 2 trainer {3 model type, 24
white space as suffix, 35 byte fallback}, 3 normalizer {2 table, 3 dummy prefix, 4 extra white space, 5 escaping}. A
protocol buffer is a run of fields, each a number that holds the field's number and its wire type, then a varint (0), 8
bytes (1), a length and as many bytes (2), or 4 bytes (5).

Nothing is allocated by what the file says: lengths are checked against the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.tokenizer.learning import LARGEST_VOCABULARY
from trivium.tokenizer.pieces import Pieces, PieceType, bpe_core, unigram_core

_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file holds."""

    pieces: Pieces
    is_unigram: bool

    def core(self) -> Core:
        """The tokenizer of the library."""
        return unigram_core(self.pieces) if self.is_unigram else bpe_core(self.pieces)


def read_model(data: bytes) -> SentencePieceModel:
    """Read a whole file. UserError when it is damaged, or of a kind that is not supported (word, char)."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            tokens.append(_text(piece.get(1, b"")))
            scores.append(_float(piece.get(2, b"\0\0\0\0")))
            types.append(_int(piece.get(3, 1)))
            if len(tokens) > LARGEST_VOCABULARY:
                raise UserError(f"it has more than {LARGEST_VOCABULARY:,} pieces")
        elif number == 2:
            trainer |= dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer |= dict(_fields(_bytes(value)))
    if not tokens:
        raise UserError("it holds no pieces, so it is no SentencePiece model")
    kind = _int(trainer.get(3, _UNIGRAM))
    if kind not in (_UNIGRAM, _BPE):
        raise UserError("it cuts text into words or characters, which is not supported: only Unigram and BPE are")
    if _int(trainer.get(24, 0)) or not _int(normalizer.get(5, 1)):
        raise UserError("it writes spaces after words or not at all, which is not supported")
    if not _int(trainer.get(35, 0)):  # then pieces that look like bytes are never used for bytes
        types = [PieceType.UNUSED if kind_ == PieceType.BYTE else kind_ for kind_ in types]
    pieces = Pieces(
        tokens,
        scores,
        types,
        adds_prefix=bool(_int(normalizer.get(3, 1))),
        removes_spaces=bool(_int(normalizer.get(4, 1))),
        charsmap=_bytes(normalizer.get(2, b"")),
    )
    return SentencePieceModel(pieces, kind == _UNIGRAM)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message; the value is a whole number, or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise UserError(f"it is no SentencePiece model (byte {place})")
        if length > len(data) - place:
            raise UserError(f"it is cut off: byte {place} announces {length:,} more, {len(data) - place:,} are there")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise UserError("it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise UserError(f"it is no SentencePiece model (byte {place})")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise UserError("it is no SentencePiece model: a number stands where a text should")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise UserError("it is no SentencePiece model: a text stands where a number should")
    return value


def _float(value: int | bytes) -> float:
    data = _bytes(value)
    if len(data) != 4:
        raise UserError("it is no SentencePiece model: a score is not of 4 bytes")
    return float(struct.unpack("<f", data)[0])


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise UserError("it is no SentencePiece model: a piece is not UTF-8") from error
