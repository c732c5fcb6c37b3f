"""Text to token ids and back, with nothing lost.

`Tokenizer` wraps the `tokenizers` library. One learned here is a byte-level BPE (see `learning.py`), whose vocabulary
holds all 256 bytes, so any text and any bytes can be written in it. Those of the published families load from their
files: byte-level BPE, WordPiece, Unigram, SentencePiece's BPE. Only what needs bytes (`encode_bytes`, `decode_bytes`)
is refused for those that are not byte-level.

Departures from the library's own behaviour:
- `encode` adds nothing by itself (`wrap` does), and a special token's text inside ordinary text is ordinary text: only
  `parse_special=True` (templates, never users' words) turns it into the special token (see `variants.py`);
- long texts are encoded in windows (see `encoding.py`);
- `decode` joins the ids' bytes itself.

Invariants: decode_bytes(encode_bytes(b)) == b for every b; encode(text) equals the library's and `transformers`' ids;
time grows in proportion to the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import index as as_index
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.progress import SILENT, Progress
from trivium.tokenizer import directory
from trivium.tokenizer.bounded import damage_named
from trivium.tokenizer.byte_tokens import CHARACTER_OF_BYTE, INVALID_UTF8, BytesOfIds, bytes_of_ids, is_byte_level
from trivium.tokenizer.chat import ChatTemplate
from trivium.tokenizer.encoding import TextEncoder
from trivium.tokenizer.kinds import KINDS, Kind
from trivium.tokenizer.learning import learn
from trivium.tokenizer.roles import Roles, completed, sentinels
from trivium.tokenizer.stream import ByteStream, StreamDecoder, WindowStream
from trivium.tokenizer.variants import continuing_core, plain_core
from trivium.tokenizer.words import Edges, edges_by_id, edges_of, starts_of
from trivium.tokenizer.wrapping import read_wrapping

__all__ = ["StreamDecoder", "Tokenizer"]


class Tokenizer:
    """A vocabulary and the rules that turn text into its ids. Immutable; safe to share between threads."""

    def __init__(
        self,
        core: Core,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        unk: str | None = None,
        cls: str | None = None,
        sep: str | None = None,
        mask: str | None = None,
        adds_bos: bool | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Take over `core`; `bos`, `eos`, ... name tokens of it (UserError when it does not hold them).

        `adds_bos` says whether texts are meant to begin with `bos` (None: as `core` itself does).
        """
        core.no_padding()
        core.no_truncation()
        core.encode_special_tokens = True
        self._core = core
        self._roles = Roles(bos, eos, pad, unk, cls, sep, mask)
        self._role_ids = {role: self.id_of(token) for role, token in self._roles.named().items()}
        wrapping = read_wrapping(core)
        begins = bos is not None and wrapping.wrap((), None)[0][:1] == [self.bos_id]
        self.adds_bos: bool = begins if adds_bos is None else adds_bos
        self._wrapping = wrapping if not self.adds_bos or self.bos_id is None else wrapping.beginning_with(self.bos_id)
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
        if not self._ids.issuperset(self.wrap([])[0] + self.wrap([], [])[0]):
            raise UserError("the post-processor puts ids around a text that are not in the vocabulary")

    # ------------------------------------------------------------------------------------------ learn, load, save

    @classmethod
    def train(
        cls,
        files: Sequence[str | Path] = (),
        *,
        vocab_size: int,
        kind: Kind = "decoder",
        texts: Iterable[str] | None = None,
        extra_special_tokens: Sequence[str] = (),
        max_text_bytes: int = 512 << 20,
        max_word_bytes: int = 16 << 20,
        progress: Progress = SILENT,
    ) -> Tokenizer:
        """Learn a byte-level BPE from text files (or `texts`) in bounded memory; see `learning.py` for the budgets.

        The vocabulary is the special tokens of that `kind` of model (see `kinds.py`; a decoder's are `<|endoftext|>`,
        which begins, ends and separates texts, `<|pad|>`, `<|im_start|>`, `<|im_end|>`), then `extra_special_tokens`,
        the 256 bytes, and merges up to `vocab_size` entries; with no room for merges every byte is a token. Special
        tokens found in the text are not learned from. Bytes that are not UTF-8 are read as U+FFFD. What was left out
        is said by `progress.note`.
        """
        if kind not in KINDS:
            raise UserError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
        chosen = KINDS[kind]
        core = learn(
            files,
            texts,
            vocab_size=vocab_size,
            special_tokens=(*chosen.special_tokens, *extra_special_tokens),
            max_text_bytes=max_text_bytes,
            max_word_bytes=max_word_bytes,
            progress=progress,
        )
        chosen.finish(core)
        return _in_roles(core, chosen.roles, None, chosen.chat_template)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Open a directory with a tokenizer, or its tokenizer.json (the files beside it are read as well).

        Older files do as well: see `formats.py`.
        """
        files = directory.read(Path(path))
        with damage_named(files.source):
            core = files.core()
            special = [token.content for token in core.get_added_tokens_decoder().values() if token.special]
            roles = completed(files.roles, files.silent, special)
            return _in_roles(core, roles, files.adds_bos, files.chat_template)

    def save(self, directory_path: str | Path, *, max_length: int | None = None) -> None:
        """Write the files that `transformers` opens into a directory, each whole or not at all.

        `max_length` (tokens) is what the model can read, written as `model_max_length`.
        """
        directory.write(
            Path(directory_path),
            self._core.to_str(pretty=True),
            self._roles,
            adds_bos=self.adds_bos or None,
            chat_template=self.chat_template,
            special_tokens=list(self.special_tokens),
            max_length=max_length,
        )

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return str(self._core.to_str())

    def with_chat_template(self, source: str | None) -> Tokenizer:
        """The same tokenizer with another chat template (Jinja source)."""
        return _restore(self._core.to_str(), {**self._names(), "chat_template": source})

    # ------------------------------------------------------------------------------------------ text to ids

    def encode(self, text: str, *, parse_special: bool = False, after: str = "") -> list[int]:
        """The ids of `text`. Nothing is added; special tokens in it count as text unless `parse_special`.

        `after` is the text (its end will do) that `text` goes on from: then a tokenizer which puts a space before a
        text does not do so.
        """
        if not after or parse_special or self._continuing is None:
            return (self._parsing if parse_special else self._plain).encode(text)
        encoder, first_word_only = self._continuing
        if not first_word_only:
            return encoder.encode(text)
        in_word = not (after[-1].isspace() or text[:1].isspace())
        begun = text.split(maxsplit=1)[0] if in_word and text else ""
        return encoder.encode(begun) + self._plain.encode(text[len(begun) :])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return self._plain.encode_batch(texts)

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """`ids` (and those of a second text) with the special tokens that the model's inputs have around them.

        Returns the ids and, for each, its type: 0 or 1, the text it belongs to for the model's type embeddings.
        """
        return self._wrapping.wrap(ids, pair)

    def word_starts(self, ids: Sequence[int]) -> list[bool]:
        """For each id whether a new word begins with it (see `words.py`); special tokens are words of their own."""
        edges = self._edges
        return starts_of(None if token_id in self._special_ids else edges[token_id] for token_id in self._checked(ids))

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

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self._roles.bos

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self._roles.eos

    @property
    def pad_token(self) -> str | None:
        """The token that fills up a row."""
        return self._roles.pad

    @property
    def mask_token(self) -> str | None:
        """The token that stands where another was hidden."""
        return self._roles.mask

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._role_ids.get("bos")

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._role_ids.get("eos")

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills up a row."""
        return self._role_ids.get("pad")

    @property
    def unk_id(self) -> int | None:
        """Id of the token that stands for what the vocabulary cannot write."""
        return self._role_ids.get("unk")

    @property
    def cls_id(self) -> int | None:
        """Id of the token that stands first where a whole text is judged."""
        return self._role_ids.get("cls")

    @property
    def sep_id(self) -> int | None:
        """Id of the token that closes each of one or two texts."""
        return self._role_ids.get("sep")

    @property
    def mask_id(self) -> int | None:
        """Id of the token that stands where another was hidden."""
        return self._role_ids.get("mask")

    @cached_property
    def sentinel_ids(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ... in this order; empty where there are none."""
        return sentinels(self._core.get_vocab(with_added_tokens=True))

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
    def _plain(self) -> TextEncoder:
        return TextEncoder(plain_core(self._core))

    @cached_property
    def _parsing(self) -> TextEncoder:
        # A second one, as the library keeps this choice inside the object, where two threads would share it.
        core = Core.from_str(self._core.to_str())
        core.encode_special_tokens = False
        return TextEncoder(core)

    @cached_property
    def _continuing(self) -> tuple[TextEncoder, bool] | None:
        variant = continuing_core(self._plain.core)
        return None if variant is None else (TextEncoder(variant[0]), variant[1])

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        if not self.is_byte_level:
            raise UserError("this tokenizer is not byte-level, so its ids have no bytes: use encode and decode")
        return BytesOfIds(self._core)

    @cached_property
    def _edges(self) -> dict[int, Edges]:
        if self.is_byte_level:
            return {token_id: edges_of(data) for token_id, data in bytes_of_ids(self._core).items()}
        return edges_by_id(self._core)

    @cached_property
    def _byte_ids(self) -> list[int]:
        """Byte -> the id of that byte alone."""
        if not self.is_byte_level:
            raise UserError("this tokenizer is not byte-level, so it cannot write every byte: use encode")
        vocabulary = self._core.get_vocab(with_added_tokens=False)
        missing = [byte for byte, character in CHARACTER_OF_BYTE.items() if character not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary lacks {len(missing)} of the 256 bytes ({missing[0]:#04x}): use encode")
        return [vocabulary[CHARACTER_OF_BYTE[byte]] for byte in range(256)]

    def _names(self) -> dict[str, Any]:
        return {**self._roles.named(), "adds_bos": self.adds_bos, "chat_template": self.chat_template}

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own state leaves out that special tokens are text; worker processes must not lose that.
        return _restore, (self._core.to_str(), self._names())


def _in_roles(core: Core, roles: Roles, adds_bos: bool | None, chat_template: str | None) -> Tokenizer:
    names: dict[str, Any] = {**roles.named(), "adds_bos": adds_bos, "chat_template": chat_template}
    return Tokenizer(core, **names)


def _restore(core_json: str, names: dict[str, Any]) -> Tokenizer:
    return Tokenizer(Core.from_str(core_json), **names)
