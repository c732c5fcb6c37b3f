"""Text to token ids and back, with nothing lost.

`Tokenizer` wraps the `tokenizers` library. One learned here is a byte-level BPE (see `learning.py`), whose vocabulary
holds all 256 bytes, so any text and any bytes can be written in it. Other tokenizers (WordPiece, Unigram) load from
their `tokenizer.json`; only what needs bytes (`encode_bytes`, `decode_bytes`) is refused for them.

Departures from the library's own behaviour:
- `encode` adds nothing by itself, and a special token's text inside ordinary text is ordinary text: only
  `parse_special=True` (templates, never users' words) turns it into the special token;
- long texts are encoded in windows, so that memory does not grow with the text. The cuts fall on word boundaries, which
  depend on nothing before them in our word pattern; tokenizers with another pattern are not cut;
- `decode` joins the ids' bytes itself.

Invariants: decode_bytes(encode_bytes(b)) == b for every b; encode(text) equals the library's and `transformers`' ids;
time grows in proportion to the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import index as as_index
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import processors

from trivium.errors import UserError
from trivium.progress import SILENT, Progress
from trivium.tokenizer import directory
from trivium.tokenizer.byte_tokens import CHARACTER_OF_BYTE, INVALID_UTF8, bytes_of_ids, is_byte_level
from trivium.tokenizer.chat import CHATML, ChatTemplate
from trivium.tokenizer.learning import (
    DEFAULT_SPECIAL_TOKENS,
    END_OF_TEXT,
    PAD,
    WORD_REACH,
    byte_level_words,
    learn,
)
from trivium.tokenizer.stream import ByteStream, StreamDecoder, WindowStream

__all__ = ["StreamDecoder", "Tokenizer"]

WINDOW = 1 << 14
"""Characters of a long text that are encoded at a time."""


class Tokenizer:
    """A vocabulary and the rules that turn text into its ids. Immutable; safe to share between threads."""

    def __init__(
        self,
        core: Core,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        adds_bos: bool | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Take over `core`; `bos`, `eos`, `pad` name tokens of it (UserError when it does not hold them).

        `adds_bos` says whether texts are meant to begin with `bos` (None: as `core` itself does).
        """
        core.no_padding()
        core.no_truncation()
        core.encode_special_tokens = True
        self._core = core
        self.bos_token, self.eos_token, self.pad_token = bos, eos, pad
        self.bos_id = None if bos is None else self.id_of(bos)
        self.eos_id = None if eos is None else self.id_of(eos)
        self.pad_id = None if pad is None else self.id_of(pad)
        begun = core.encode("", add_special_tokens=True).ids[:1]
        self.adds_bos: bool = (bos is not None and begun == [self.bos_id]) if adds_bos is None else adds_bos
        self.chat_template = chat_template
        added = core.get_added_tokens_decoder()
        special = {token.content: token_id for token_id, token in sorted(added.items()) if token.special}
        self.special_tokens: Mapping[str, int] = MappingProxyType(special)
        self._special_ids = frozenset(special.values())
        vocabulary = core.get_vocab(with_added_tokens=True)
        self._ids = frozenset(vocabulary.values())
        if len(self._ids) < len(vocabulary):
            raise UserError("two tokens of the vocabulary share an id")
        self.vocab_size: int = max(self._ids, default=-1) + 1
        self.is_byte_level: bool = is_byte_level(core)
        # Only our own word pattern is known to look neither back nor far ahead.
        self._can_be_cut = (
            core.normalizer is None
            and core.pre_tokenizer is not None
            and core.pre_tokenizer.__getstate__() == byte_level_words().__getstate__()
            and all(
                not (token.lstrip or token.rstrip or token.single_word) and len(token.content) < WORD_REACH
                for token in added.values()
            )
        )

    # ------------------------------------------------------------------------------------------ learn, load, save

    @classmethod
    def train(
        cls,
        files: Sequence[str | Path] = (),
        *,
        vocab_size: int,
        texts: Iterable[str] | None = None,
        extra_special_tokens: Sequence[str] = (),
        max_text_bytes: int = 512 << 20,
        max_word_bytes: int = 16 << 20,
        progress: Progress = SILENT,
    ) -> Tokenizer:
        """Learn a byte-level BPE from text files (or `texts`) in bounded memory; see `learning.py` for the budgets.

        The vocabulary is the special tokens (`<|endoftext|>`, which begins, ends and separates texts, `<|pad|>`,
        `<|im_start|>`, `<|im_end|>`, then `extra_special_tokens`), the 256 bytes, and merges up to `vocab_size`
        entries; with no room for merges every byte is a token. Special tokens found in the text are not learned from.
        Bytes that are not UTF-8 are read as U+FFFD. What was left out is said by `progress.note`.
        """
        core = learn(
            files,
            texts,
            vocab_size=vocab_size,
            special_tokens=(*DEFAULT_SPECIAL_TOKENS, *extra_special_tokens),
            max_text_bytes=max_text_bytes,
            max_word_bytes=max_word_bytes,
            progress=progress,
        )
        # Elsewhere too a text is to begin as it did in training.
        core.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, core.token_to_id(END_OF_TEXT))]
        )
        return cls(core, bos=END_OF_TEXT, eos=END_OF_TEXT, pad=PAD, chat_template=CHATML)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Open a directory with a tokenizer.json, or that file itself (the files beside it are read as well)."""
        files = directory.read(Path(path))
        with _damage_named(files.source):
            return cls(
                Core.from_str(files.core),
                bos=files.bos,
                eos=files.eos,
                pad=files.pad,
                adds_bos=files.adds_bos,
                chat_template=files.chat_template,
            )

    def save(self, directory_path: str | Path, *, max_length: int | None = None) -> None:
        """Write the files that `transformers` opens into a directory, each whole or not at all.

        `max_length` (tokens) is what the model can read, written as `model_max_length`.
        """
        files = directory.TokenizerFiles(
            source=Path(directory_path) / directory.TOKENIZER,
            core=self._core.to_str(pretty=True),
            bos=self.bos_token,
            eos=self.eos_token,
            pad=self.pad_token,
            adds_bos=self.adds_bos or None,
            chat_template=self.chat_template,
        )
        directory.write(Path(directory_path), files, list(self.special_tokens), max_length)

    def with_chat_template(self, source: str | None) -> Tokenizer:
        """The same tokenizer with another chat template (Jinja source)."""
        return _restore(self._core.to_str(), {**self._names(), "chat_template": source})

    # ------------------------------------------------------------------------------------------ text to ids

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """The ids of `text`. Nothing is added; special tokens in it count as text unless `parse_special`."""
        core = self._parsing_core if parse_special else self._core
        return self._encode_long(core, text) if self._is_long(text) else self._encode_short(core, [text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        short = iter(self._encode_short(self._core, [text for text in texts if not self._is_long(text)]))
        return [self._encode_long(self._core, text) if self._is_long(text) else next(short) for text in texts]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids whose bytes are exactly `data`: stretches of UTF-8 as `encode` has them, other bytes one id each.

        Raises UserError for tokenizers that are not byte-level.
        """
        byte_ids = self._byte_ids
        ids: list[int] = []
        for number, stretch in enumerate(INVALID_UTF8.split(data.decode("utf-8", "surrogateescape"))):
            if number % 2:
                ids += [byte_ids[ord(character) - 0xDC00] for character in stretch]
                continue
            encoded = self.encode(stretch)
            # A loaded tokenizer may normalise its text (or add a space): then the bytes are written one by one.
            exact = stretch.encode()
            ids += encoded if self.decode_bytes(encoded) == exact else [byte_ids[byte] for byte in exact]
        return ids

    def _is_long(self, text: str) -> bool:
        return self._can_be_cut and isinstance(text, str) and len(text) > WINDOW

    def _encode_short(self, core: Core, texts: list[str]) -> list[list[int]]:
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {number} to encode is of type {type(text).__name__}, not a string")
        try:
            return [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # the library's word for a string that UTF-8 cannot write
            raise UserError(_why_not_text(texts)) from error

    def _encode_long(self, core: Core, text: str) -> list[int]:
        """Encode a window, keep the words that cannot depend on what follows it, go on from there."""
        ids: list[int] = []
        start = 0
        while len(text) - start > WINDOW:
            try:
                encoding = core.encode(text[start : start + WINDOW], add_special_tokens=False)
            except TypeError as error:
                raise UserError(_why_not_text([text])) from error
            word = encoding.char_to_word(WINDOW - WORD_REACH)
            assert word is not None, "a byte-level tokenizer has a token for every character"
            characters, tokens = encoding.word_to_chars(word), encoding.word_to_tokens(word)
            assert characters is not None and tokens is not None and characters[0] > 0
            ids += encoding.ids[: tokens[0]]
            start += characters[0]
        return ids + self._encode_short(core, [text[start:]])[0]

    # ------------------------------------------------------------------------------------------ ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. UserError for ids outside the vocabulary."""
        checked = self._checked(ids)
        if skip_special:
            checked = [token_id for token_id in checked if token_id not in self._special_ids]
        if not self.is_byte_level:
            return str(self._core.decode(checked, skip_special_tokens=False))
        return b"".join(map(self._bytes.__getitem__, checked)).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of `ids` (of a special token: its text). UserError unless the tokenizer is byte-level."""
        return b"".join(map(self._bytes.__getitem__, self._checked(ids)))

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes ids one by one and gives complete characters."""
        if self.is_byte_level:
            return ByteStream(lambda i: self.decode_bytes([i]), self._special_ids if skip_special else ())
        return WindowStream(lambda ids: self.decode(ids, skip_special=skip_special))

    def id_of(self, token: str) -> int:
        """The id of a token, written as in tokenizer.json. UserError when there is none."""
        token_id = self._core.token_to_id(token)
        if token_id is None:
            raise UserError(f"the tokenizer has no token {token!r}")
        return int(token_id)

    def token_of(self, token_id: int) -> str:
        """The token with an id, written as in tokenizer.json. UserError when there is none."""
        return str(self._core.id_to_token(self._checked([token_id])[0]))

    def _checked(self, ids: Sequence[int]) -> list[int]:
        try:
            checked = [as_index(token_id) for token_id in ids]
        except TypeError as error:
            raise UserError("token ids must be a list of whole numbers") from error
        if not self._ids.issuperset(checked):
            position, wrong = next((p, i) for p, i in enumerate(checked) if i not in self._ids)
            raise UserError(f"id {wrong} (position {position}) is not in the vocabulary of {self.vocab_size:,} entries")
        return checked

    # ------------------------------------------------------------------------------------------ what it is

    def __len__(self) -> int:
        """How many entries the vocabulary has (`vocab_size` also counts ids that no token uses, if there are any)."""
        return len(self._ids)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the tokenizer.json in canonical form: equal fingerprints, equal ids."""
        canonical = json.dumps(json.loads(self._core.to_str()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """How conversations are written and which of their ids are learned; None without a chat template."""
        return None if self.chat_template is None else ChatTemplate(self.chat_template, self)

    @cached_property
    def _parsing_core(self) -> Core:
        # A second one, as the library keeps this choice inside the object, where two threads would share it.
        core = Core.from_str(self._core.to_str())
        core.encode_special_tokens = False
        return core

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        if not self.is_byte_level:
            raise UserError("this tokenizer is not byte-level, so its ids have no bytes: use encode and decode")
        return bytes_of_ids(self._core)

    @cached_property
    def _byte_ids(self) -> list[int]:
        """Byte -> the id of that byte alone."""
        if not self.is_byte_level:
            raise UserError("this tokenizer is not byte-level, so it cannot write every byte: use encode")
        vocabulary = self._core.get_vocab(with_added_tokens=False)
        return [vocabulary[CHARACTER_OF_BYTE[byte]] for byte in range(256)]

    def _names(self) -> dict[str, Any]:
        return {
            "bos": self.bos_token,
            "eos": self.eos_token,
            "pad": self.pad_token,
            "adds_bos": self.adds_bos,
            "chat_template": self.chat_template,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own state leaves out that special tokens are text; worker processes must not lose that.
        return _restore, (self._core.to_str(), self._names())


def _restore(core_json: str, names: dict[str, Any]) -> Tokenizer:
    return Tokenizer(Core.from_str(core_json), **names)


@contextmanager
def _damage_named(source: Path) -> Iterator[None]:
    """Whatever goes wrong while a tokenizer is made from `source` becomes a UserError that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source.parent}: {error}") from error
    except BaseException as error:
        # A panic of the library (some damaged files cause one) is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{source} is not a tokenizer: {error}") from error


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
