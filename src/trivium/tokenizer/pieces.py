"""From a list of pieces with scores (as SentencePiece and GGUF store vocabularies) to a core of the library.

SentencePiece (Kudo and Richardson, 2018) writes a space as U+2581, puts one before a text, and then either joins the
best-scored neighbours again and again (BPE) or takes the likeliest cutting of the whole (Unigram). What no piece holds
is written byte by byte, or becomes the unknown token.

Departures, all of the library's making: where two pairs of neighbours would join to the same piece, SentencePiece takes
the leftmost first and the library the one whose left part is longer (which shows only where the two overlap, in runs of
one character); a combining mark behind a character that the table replaces is lost; and a Unigram vocabulary with bytes
takes the text `<0x41>` for that byte.

Invariant: on every text without these the ids are those of the sentencepiece package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.tokenizer.words import BYTE_PIECE, SPACE

LONGEST_PIECE = 1 << 10
"""Characters; pieces of published vocabularies have at most 48 or so. Bounds the pairs a piece can be made of."""


REMOVE_SPACES = r"\A +| +\z| +(?= )"
"""Spaces at the ends of a text, and all but the last of several."""


class PieceType(IntEnum):
    """What a piece is; the numbers are those of SentencePiece's and of GGUF's files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of pieces and how a text is made ready for it."""

    tokens: Sequence[str]
    """Piece of each id."""
    scores: Sequence[float]
    """Score of each piece: higher joins first (BPE), or its log-probability (Unigram)."""
    types: Sequence[int]
    """`PieceType` of each piece."""
    adds_prefix: bool = True
    """Whether a space is put before a text."""
    removes_spaces: bool = False
    """Whether spaces at the ends, and all but one of several, are taken away."""
    charsmap: bytes = b""
    """SentencePiece's compiled table of characters to replace."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.scores) == len(self.types):
            raise UserError(
                f"the vocabulary has {len(self.tokens):,} tokens, {len(self.scores):,} scores and "
                f"{len(self.types):,} types: the three lists must be equally long"
            )
        if any(len(token) > LONGEST_PIECE for token in self.tokens):
            raise UserError(f"the vocabulary holds a piece of more than {LONGEST_PIECE:,} characters")
        if len(set(self.tokens)) < len(self.tokens):
            raise UserError("two pieces of the vocabulary are equal")

    @property
    def has_bytes(self) -> bool:
        """Whether every byte has a piece."""
        return sum(kind == PieceType.BYTE for kind in self.types) == 256

    def of_type(self, *types: PieceType) -> list[str]:
        """The pieces of these types, in the order of their ids."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def bpe_core(pieces: Pieces) -> Core:
    """Joins neighbours by score. UserError when the lists do not fit together."""
    vocabulary = {token: token_id for token_id, token in enumerate(pieces.tokens)}
    unknown = next(iter(pieces.of_type(PieceType.UNKNOWN)), None)
    model = models.BPE(
        vocab=vocabulary,
        merges=joins_of(pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=pieces.has_bytes,
    )
    return _finish(Core(model), pieces, split=False)


def unigram_core(pieces: Pieces) -> Core:
    """Takes the likeliest cutting. UserError when there is no unknown piece or the lists do not fit together."""
    if PieceType.UNKNOWN not in pieces.types:
        raise UserError("a Unigram vocabulary needs an unknown piece, and this one has none")
    vocabulary = [(token, float(score)) for token, score in zip(pieces.tokens, pieces.scores, strict=True)]
    model = models.Unigram(vocabulary, list(pieces.types).index(PieceType.UNKNOWN), pieces.has_bytes)
    # Words may be cut one by one where no piece reaches over the beginning of a word.
    return _finish(Core(model), pieces, split=not any(SPACE in token[1:] for token in pieces.tokens))


def scores_of_merges(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """The way back from merges: pieces that are made earlier score higher, those made in turns score the same.

    All others have 0, as in published files.
    """
    last = {left + right: number for number, (left, right) in enumerate(merges)}
    score: dict[str, float] = {}
    group, end = 0, -1
    for number, (left, right) in enumerate(merges):
        if number > end:
            group += 1
        end = max(end, last[left + right])
        score.setdefault(left + right, -float(group))
    return [score.get(token, 0.0) for token in tokens]


def joins_of(pieces: Pieces) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, the best-scored piece first."""
    score = {
        token: value
        for token, value, kind in zip(pieces.tokens, pieces.scores, pieces.types, strict=True)
        if kind in (PieceType.NORMAL, PieceType.UNUSED)
    }
    merges = [
        (score[piece], piece[:cut], piece[cut:])
        for piece in score
        for cut in range(1, len(piece))
        if piece[:cut] in score and piece[cut:] in score
    ]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def _finish(core: Core, pieces: Pieces, *, split: bool) -> Core:
    """Everything around the model: what is done to a text before it and to ids after it; special tokens."""
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.removes_spaces:
        steps.append(normalizers.Replace(Regex(REMOVE_SPACES), ""))
    own = pieces.of_type(PieceType.USER_DEFINED)
    if pieces.adds_prefix and not own:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    core.normalizer = normalizers.Sequence(steps)
    if pieces.adds_prefix and own:  # such pieces are normalized like the text to be found in it: never begin them
        core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split)
    elif split:
        core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "never", split=True)
    parts: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if pieces.adds_prefix else [])])
    special = pieces.of_type(PieceType.CONTROL, PieceType.UNKNOWN)
    core.add_tokens([AddedToken(token, normalized=True, special=False) for token in own if token])
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special if token])
    return core


def types_of(tokens: Sequence[str], special: Sequence[str], own: Sequence[str], unknown: str | None) -> list[int]:
    """The type of each token, from which ones are special, added whole, or unknown."""
    named = dict.fromkeys(own, PieceType.USER_DEFINED) | dict.fromkeys(special, PieceType.CONTROL)
    if unknown is not None:
        named[unknown] = PieceType.UNKNOWN
    return [
        int(named.get(token, PieceType.BYTE if BYTE_PIECE.fullmatch(token) else PieceType.NORMAL)) for token in tokens
    ]
