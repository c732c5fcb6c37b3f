"""What the data tests share: a real tokenizer of one id a byte, and shards of given documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from trivium.data.shards import SHARD_TOKENS, Shards, build_shards


class ByteTokenizer:
    """One id for each byte of UTF-8, 256 for the end of a text, and 257 for its beginning."""

    vocab_size = 258
    eos_id = 256
    bos_id: int | None = 257
    fingerprint = "bytes"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()


class WideByteTokenizer(ByteTokenizer):
    """The same ids in a vocabulary that needs four bytes an id."""

    vocab_size = 70_000
    eos_id = 69_999
    fingerprint = "wide bytes"


def shards_of(
    documents: Sequence[str],
    directory: Path,
    tokenizer: ByteTokenizer | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Shards:
    """Shards of these documents, new or found."""
    return build_shards(
        documents,
        tokenizer or ByteTokenizer(),
        directory,
        made_from={"test": list(documents)},
        shard_tokens=shard_tokens,
    )


def random_documents(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Documents of 1 to `longest` letters."""
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh \nüß", k=draw.randint(1, longest))) + "." for _ in range(count)]
