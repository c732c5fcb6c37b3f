"""One tokenizer, learned from real text, shared by the tests of this folder."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import pytest

from trivium.tokenizer.bpe import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]


def standard_library(limit: int) -> list[Path]:
    """Sources of the standard library, alphabetically, up to `limit` bytes."""
    chosen, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        size += path.stat().st_size
        if size > limit:
            break
        chosen.append(path)
    return chosen


@pytest.fixture(scope="session")
def sources() -> list[Path]:
    """About 1.5 MB of Python."""
    return standard_library(1_500_000)


@pytest.fixture(scope="session")
def tokenizer(sources: list[Path]) -> Tokenizer:
    """2,000 entries: small, but with every kind of merge."""
    return Tokenizer.train(sources, vocab_size=2000)


@pytest.fixture(scope="session")
def mixed_corpus(sources: list[Path]) -> list[str]:
    """2 MB of texts: Python, every script of Unicode, and (where present) verse, German, news and emoji."""
    texts = [path.read_text("utf-8", "replace") for path in sources]
    draw = random.Random(0)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    texts += ["".join(map(chr, draw.choices(points[:0x3000], k=500))) for _ in range(100)]
    texts += ["".join(map(chr, draw.choices(points, k=500))) for _ in range(100)]
    data = REPOSITORY.parent / "shared" / "data"
    for name in (
        "tinyshakespeare/input.txt",
        "tokenizers/cs336/german.txt",
        "tokenizers/llama.cpp/ggml-vocab-gpt-2.gguf.inp",
        "multi30k/val.de",
        "lee-news/lee_background.cor",
    ):
        if (data / name).is_file():
            texts.append((data / name).read_text("utf-8")[:200_000])
    return texts
