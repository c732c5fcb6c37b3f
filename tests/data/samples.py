"""What the data tests share: a real tokenizer of one id a byte, and shards of given documents."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trivium.data.marks import Marks
from trivium.data.shards import SHARD_TOKENS, Shards, build_shards


class ByteTokenizer:
    """One id for each byte of UTF-8, 256 for the end of a text, and 257 for its beginning."""

    vocab_size = 258
    eos_id: int | None = 256
    sep_id: int | None = None
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


BYTE_VOCABULARY = 300
MASK_ID, START_ID = 258, 259
SENTINELS = tuple(range(260, 300))


def byte_marks(before: tuple[int, ...] = (), after: tuple[int, ...] = (256,)) -> Marks:
    """Marks of a vocabulary of one id a byte, with 40 sentinels; words begin at spaces, sentences end with stops."""
    return Marks(
        before=before,
        after=after,
        ordinary=np.arange(256),
        pad_id=257,
        start_id=START_ID,
        mask_id=MASK_ID,
        sentinels=SENTINELS,
        sentence_ends=np.array([ord("."), ord("\n")]),
        word_starts=lambda ids: [place == 0 or token == 32 for place, token in enumerate(ids)],
    )


def text_ids(length: int, start: int = 0) -> NDArray[np.int64]:
    """Ids of real text: the source of a module of the standard library."""
    text = Path(textwrap.__file__).read_bytes()
    return np.frombuffer(text[start : start + length], np.uint8).astype(np.int64)
