"""Texts that tokenizers disagree about, and how to compare two of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

Encode = Callable[[str], Sequence[int]]

ODD = [
    "",
    " ",
    "   ",
    "\t\ta\n\n b\r\n c",
    "  a  b   c  ",
    "\x00\x01\x02a\x7f\u200b\ufeff\u2028b\x85c",
    "e\u0301 é \ufb01 \u2460 \u2167 \uff46\uff55\uff4c\uff4c",
    "漢字 かな カナ 한국어 ไทย हिन्दी العربية עברית",
    "😀👩\u200d👩\u200d👧\u200d👦🇩🇪 \ud7a3",
    "It's WE'LL they'Ve 1234567 3.14 x1y2",
    "▁a ▁ b▁",
    "a" * 300,
    " " * 300 + "x",
    "漢" * 200,
    "." * 200,
]


def texts(shared_data: Path) -> list[str]:
    """Several languages, llama.cpp's own cases, every script, control characters, long runs of one character."""
    cases = shared_data / "tokenizers" / "llama.cpp" / "ggml-vocab-gpt-2.gguf.inp"
    chosen = [*ODD, *cases.read_text("utf-8").split("\n__ggml_vocab_test__\n")]
    for name in ("tokenizers/cs336/german.txt", "multi30k/val.de", "tinyshakespeare/input.txt", "botchan/botchan.txt"):
        text = (shared_data / name).read_text("utf-8")[:12_000]
        chosen += [text, *text.split("\n")[:80]]
    draw = random.Random(5)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    chosen += ["".join(map(chr, draw.choices(points[:0x3000], k=80))) for _ in range(40)]
    return chosen + ["".join(map(chr, draw.choices(points, k=80))) for _ in range(20)]


def differing(ours: Encode, theirs: Encode, texts: Sequence[str]) -> list[str]:
    """The texts of which the two make different ids."""
    return [text for text in texts if list(ours(text)) != list(theirs(text))]
