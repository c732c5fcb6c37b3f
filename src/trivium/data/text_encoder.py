"""What tokenizing documents asks of a tokenizer, and which of its ids closes each."""

from __future__ import annotations

from typing import Protocol


class TextEncoder(Protocol):
    """What building shards asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, if there is one."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, if there is one."""
        ...

    @property
    def sep_id(self) -> int | None:
        """The id that stands between two texts, if there is one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the ids of some text would."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without beginning or end marks."""
        ...


def closing_id(tokenizer: TextEncoder) -> int | None:
    """What closes each document in shards: the end-of-text id, or the separator where there is none (as in BERT).

    What an encoder reads are the documents without it, within marks of their own.
    """
    return tokenizer.sep_id if tokenizer.eos_id is None else tokenizer.eos_id
