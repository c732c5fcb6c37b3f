"""The tokenizer that a GGUF file describes in its metadata (`tokenizer.ggml.*`), made into one of ours.

GGUF names the kind of vocabulary (`model`): `gpt2` byte-level BPE, whose words `pre` says how to cut; `llama`
SentencePiece's BPE, scores instead of merges; `bert` WordPiece, where a piece that begins a word is written with U+2581
before it and one that goes on with nothing; `t5` Unigram. What a file does not say is what llama.cpp takes it to be.

Departures from llama.cpp: control tokens in a text stay text unless special text is parsed; user-defined tokens are
always found, there and here.

Invariant: on llama.cpp's own vocabularies and texts the ids are its ids; `tokenizer_from_gguf(gguf_fields(t))` gives
the ids that `t` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from trivium.errors import UserError, nearest
from trivium.tokenizer.bounded import library_errors
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.gguf_expression import ROLE_KEYS, gguf_fields
from trivium.tokenizer.learning import LARGEST_VOCABULARY
from trivium.tokenizer.patterns import PATTERNS, SAME_AS, WHOLE_WORDS, pre_tokenizer_of
from trivium.tokenizer.pieces import Pieces, PieceType, bpe_core, unigram_core
from trivium.tokenizer.words import SPACE
from trivium.tokenizer.wrapping import set_wrapping

__all__ = ["gguf_fields", "tokenizer_from_gguf"]

T = TypeVar("T")

# The ids that a file of each kind need not write.
_USUAL_IDS: dict[str, dict[str, int]] = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2},
}


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file's metadata: keys as in the file, values as plain Python values.

    Raises UserError that names the key when something is missing, of the wrong type, or unknown.
    """
    vocabulary = _Vocabulary(fields)
    kind = vocabulary.get("model", str, None)
    makers = {"gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece, "t5": _sentence_piece}
    if kind not in makers:
        raise UserError(f"tokenizer.ggml.model is {kind!r}: known are {', '.join(makers)}")
    with library_errors(f"tokenizer.ggml.* describe no {kind} vocabulary"):
        core = makers[kind](vocabulary)
    roles = _roles(vocabulary, kind)
    adds_bos = _wrap(core, vocabulary, kind, roles)
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(f"tokenizer.chat_template must be text, not {type(template).__name__}")
    names: dict[str, Any] = {**roles, "adds_bos": adds_bos, "chat_template": template}
    return Tokenizer(core, **names)


class _Vocabulary:
    """The metadata, checked as it is asked for."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self.tokens = self.list_of("tokens", str)
        if not 0 < len(self.tokens) <= LARGEST_VOCABULARY:
            raise UserError(f"tokenizer.ggml.tokens has {len(self.tokens):,} entries: 1 to {LARGEST_VOCABULARY:,}")
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            raise UserError("tokenizer.ggml.tokens holds one token twice")
        self.types = self.list_of("token_type", int, [int(PieceType.NORMAL)] * len(self.tokens))
        if len(self.types) != len(self.tokens):
            raise UserError(f"tokenizer.ggml.token_type has {len(self.types):,} entries, tokens {len(self.tokens):,}")

    def get(self, key: str, kind: type[T], default: T | None) -> T | None:
        """The value of `tokenizer.ggml.<key>`, of type `kind`."""
        value = self._fields.get(f"tokenizer.ggml.{key}", default)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise UserError(f"tokenizer.ggml.{key} must be a {kind.__name__}, not {type(value).__name__}")
        return value

    def list_of(self, key: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """The list under `tokenizer.ggml.<key>`, each item of type `kind`."""
        value = self._fields.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, Sequence) or not all(type(item) is kind for item in value):
            found = "is missing" if value is None else f"must be a list of {kind.__name__}"
            raise UserError(f"tokenizer.ggml.{key} {found}")
        return list(value)

    def of_type(self, *types: PieceType) -> list[str]:
        """The tokens of these types."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def add_to(self, core: Core) -> None:
        """Tell `core` which tokens are found whole, and which of these are special."""
        own = [AddedToken(t, normalized=False, special=False) for t in self.of_type(PieceType.USER_DEFINED) if t]
        special = [AddedToken(t, normalized=False) for t in self.of_type(PieceType.CONTROL, PieceType.UNKNOWN) if t]
        core.add_tokens(own)
        core.add_special_tokens(special)


# ------------------------------------------------------------------------------------------------ the kinds


def _byte_level(vocabulary: _Vocabulary) -> Core:
    pre = vocabulary.get("pre", str, "default") or "default"
    name = SAME_AS.get(pre, pre)
    if name not in PATTERNS:
        known = sorted([*PATTERNS, *SAME_AS])
        guess = nearest(pre, known)
        raise UserError(
            f"tokenizer.ggml.pre is {pre!r}, a way to cut words that is not known here"
            f"{f' (did you mean {guess!r}?)' if guess else ''}: known are {', '.join(known)}"
        )
    merges = []
    for number, line in enumerate(vocabulary.list_of("merges", str)):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise UserError(f"tokenizer.ggml.merges: entry {number} must be two tokens, not {line[:40]!r}")
        merges.append((left, right))
    core = Core(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre in WHOLE_WORDS))
    core.pre_tokenizer = pre_tokenizer_of(PATTERNS[name])
    core.decoder = decoders.ByteLevel()
    vocabulary.add_to(core)
    return core


def _sentence_piece(vocabulary: _Vocabulary) -> Core:
    is_unigram = vocabulary.get("model", str, None) == "t5"
    types = list(vocabulary.types)
    unknown = vocabulary.get(ROLE_KEYS["unk"], int, 2 if is_unigram else 0)
    if is_unigram and PieceType.UNKNOWN not in types and unknown is not None and 0 <= unknown < len(types):
        types[unknown] = PieceType.UNKNOWN
    pieces = Pieces(
        vocabulary.tokens,
        vocabulary.list_of("scores", float),
        types,
        adds_prefix=bool(vocabulary.get("add_space_prefix", bool, True)),
        # llama.cpp itself does this for Unigram alone.
        removes_spaces=is_unigram and bool(vocabulary.get("remove_extra_whitespaces", bool, False)),
        charsmap=_charsmap(vocabulary) if is_unigram else b"",
    )
    return unigram_core(pieces) if is_unigram else bpe_core(pieces)


def _charsmap(vocabulary: _Vocabulary) -> bytes:
    try:
        return bytes(vocabulary.list_of("precompiled_charsmap", int, []))
    except ValueError as error:
        raise UserError("tokenizer.ggml.precompiled_charsmap must be a list of bytes") from error


def _word_piece(vocabulary: _Vocabulary) -> Core:
    kept = {PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED, PieceType.UNUSED}
    written: dict[str, int] = {}
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        begins = token.startswith(SPACE)
        plain = token if kind in kept and not begins else token[1:] if begins else f"##{token}"
        written[plain] = token_id
    if len(written) < len(vocabulary.tokens):
        raise UserError("tokenizer.ggml.tokens holds one WordPiece twice")
    unknown = vocabulary.get(ROLE_KEYS["unk"], int, _USUAL_IDS["bert"]["unk"]) or 0
    if not 0 <= unknown < len(vocabulary.tokens):
        raise UserError(f"tokenizer.ggml.{ROLE_KEYS['unk']} is {unknown}, which is no token")
    core = Core(models.WordPiece(vocab=written, unk_token=vocabulary.tokens[unknown]))
    lowercase = bool(vocabulary.get("normalizer.lowercase", bool, True))
    core.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=vocabulary.get("normalizer.strip_accents", bool, lowercase)
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    vocabulary.add_to(core)
    return core


# ------------------------------------------------------------------------------------------------ special tokens


def _roles(vocabulary: _Vocabulary, kind: str) -> dict[str, str]:
    """Role -> token, for the roles that the file (or its kind) fills."""
    roles = {}
    for role, key in ROLE_KEYS.items():
        token_id = vocabulary.get(key, int, None)
        usual = _USUAL_IDS[kind].get(role)
        if token_id is None and usual is not None and usual < len(vocabulary.tokens):
            token_id = usual
        if token_id is None:
            continue
        if not 0 <= token_id < len(vocabulary.tokens):
            raise UserError(f"tokenizer.ggml.{key} is {token_id}, but there are {len(vocabulary.tokens):,} tokens")
        roles[role] = vocabulary.tokens[token_id]
    if kind == "bert" and vocabulary.get(ROLE_KEYS["cls"], int, None) is None:  # older files call it the beginning
        roles["cls"] = roles.get("bos", roles.get("cls", ""))
    return {role: token for role, token in roles.items() if token}


def _wrap(core: Core, vocabulary: _Vocabulary, kind: str, roles: Mapping[str, str]) -> bool:
    """Let `core` put around a text what the file says; returns whether a text begins with the `bos` role's token."""
    pre = vocabulary.get("pre", str, "default")
    with_bos = vocabulary.get("add_bos_token", bool, kind in ("llama", "bert") or pre in WHOLE_WORDS)
    with_eos = vocabulary.get("add_eos_token", bool, kind == "t5")
    with_sep = vocabulary.get("add_sep_token", bool, kind == "bert" or pre == "roberta-bpe")
    begin, end = roles.get("bos"), roles.get("eos")
    if kind == "bert":
        begin, end, with_eos = roles.get("cls"), roles.get("sep"), with_sep
    elif with_sep:
        end, with_eos = roles.get("sep", end), True
    first = [begin] if with_bos and begin else []
    last = [end] if with_eos and end else []
    if not first and not last:
        return False
    single = [*first, "$A", *last]
    if with_sep and kind != "bert":  # as RoBERTa has it
        set_wrapping(core, single, [*single, *last, "$B", *last])
    elif with_sep:
        set_wrapping(core, single, [*single, "$B:1", *(f"{token}:1" for token in last)])
    else:
        set_wrapping(core, single, [*single, *(f"{slot}:1" for slot in (*first, "$B", *last))])
    return bool(first) and begin == roles.get("bos")
