"""How well a vocabulary fits a text, in a few numbers.

Bytes per token say how much a model reads per step of work; fertility (tokens per word; Rust et al., 2021) how badly
words are broken; unused entries and single-byte tokens whether the vocabulary was learned from the like of this text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class QualityReport:
    """A vocabulary measured on a text. Special tokens are left out of all counts."""

    num_bytes: int
    """Bytes of text (UTF-8)."""
    num_tokens: int
    """Tokens that write it."""
    num_words: int
    """Words, as white space separates them."""
    bytes_per_token: float
    """num_bytes / num_tokens: more is denser."""
    tokens_per_word: float
    """num_tokens / num_words (fertility): 1 would be a vocabulary that knows every word."""
    vocab_size: int
    """Entries of the vocabulary, special tokens left out."""
    unused_entries: int
    """Entries that never occur."""
    unused_share: float
    """unused_entries / vocab_size, 0 to 1."""
    single_byte_share: float
    """Share of the tokens that stand for one byte each, 0 to 1."""
    longest_token: str
    """The longest token that occurs, as text."""

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) pairs for a table."""
        return [
            ("text", f"{self.num_bytes:,} bytes, {self.num_tokens:,} tokens"),
            ("bytes per token", f"{self.bytes_per_token:.3f}"),
            ("tokens per word", f"{self.tokens_per_word:.3f}"),
            ("unused entries", f"{self.unused_entries:,} of {self.vocab_size:,} ({self.unused_share:.1%})"),
            ("single-byte tokens", f"{self.single_byte_share:.1%}"),
            ("longest token", repr(self.longest_token)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return asdict(self)


def quality_report(tokenizer: Tokenizer, texts: Iterable[str]) -> QualityReport:
    """Measure `tokenizer` on `texts`, in memory for one batch at a time. UserError when they hold no text."""
    counts: Counter[int] = Counter()
    num_bytes = num_words = 0
    for batch in _batches(texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            counts.update(ids)
            num_bytes += len(text.encode())
            num_words += len(text.split())
    num_tokens = counts.total()
    if not num_tokens:
        raise UserError("there is no text to measure the tokenizer on")
    size = {token_id: _size(tokenizer, token_id) for token_id in counts}
    entries = len(tokenizer) - len(tokenizer.special_tokens)
    unused = entries - len(counts)
    longest = max(size, key=lambda token_id: (size[token_id], -token_id))
    return QualityReport(
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        num_words=num_words,
        bytes_per_token=num_bytes / num_tokens,
        tokens_per_word=num_tokens / max(num_words, 1),
        vocab_size=entries,
        unused_entries=unused,
        unused_share=unused / max(entries, 1),
        single_byte_share=sum(n for token_id, n in counts.items() if size[token_id] == 1) / num_tokens,
        longest_token=tokenizer.decode([longest]),
    )


def _size(tokenizer: Tokenizer, token_id: int) -> int:
    """Bytes that a token stands for."""
    if tokenizer.is_byte_level:
        return len(tokenizer.decode_bytes([token_id]))
    return len(tokenizer.decode([token_id]).encode())


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
