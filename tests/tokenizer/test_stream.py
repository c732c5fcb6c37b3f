"""What is streamed is what is decoded, cut anywhere."""

from __future__ import annotations

import random
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from trivium.tokenizer.bpe import Tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special=skip_special)
    return [stream.push(i) for i in ids] + [stream.finish()]


def agrees_at_every_cut(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> bool:
    """Whole texts agree, and at every cut what was pushed is the decoded text without its unfinished end."""
    pieces = streamed(tokenizer, ids, skip_special)
    if "".join(pieces) != tokenizer.decode(ids, skip_special=skip_special):
        return False
    for cut in range(len(ids)):
        pushed = "".join(pieces[:cut])
        decoded = tokenizer.decode(ids[:cut], skip_special=skip_special)
        if not decoded.startswith(pushed) or decoded[len(pushed) :].strip("\ufffd"):
            return False
    return True


@given(st.text(max_size=40))
def test_texts(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert agrees_at_every_cut(tokenizer, ids)
    assert agrees_at_every_cut(tokenizer, [4 + b for b in text.encode()]), "a token a byte"
    assert "".join(streamed(tokenizer, ids)) == text


@given(st.lists(st.integers(0, 1999), max_size=30), st.booleans())
def test_ids_that_are_not_text(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    assert agrees_at_every_cut(tokenizer, ids, skip_special)


def test_characters_come_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_bytes("a😀é".encode())
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == "a😀é" and "\ufffd" not in "".join(pieces)
    assert streamed(tokenizer, tokenizer.encode_bytes(b"a\xf0\x9f"))[-1] == "\ufffd"


def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hi<|im_end|>", parse_special=True)
    assert "".join(streamed(tokenizer, ids)) == "hi"
    assert "".join(streamed(tokenizer, ids, skip_special=False)) == "hi<|im_end|>"


def test_long_streams(tokenizer: Tokenizer, mixed_corpus: list[str]) -> None:
    text = "".join(random.Random(3).sample(mixed_corpus, 5))[:100_000]
    assert "".join(streamed(tokenizer, tokenizer.encode(text))) == text


def test_control_decoding_each_id_alone_is_caught(tokenizer: Tokenizer) -> None:
    alone = SimpleNamespace(push=lambda i: tokenizer.decode([i], skip_special=True), finish=lambda: "")
    broken = SimpleNamespace(decode=tokenizer.decode, stream=lambda skip_special: alone)
    assert agrees_at_every_cut(tokenizer, tokenizer.encode("漢 a"))
    assert not agrees_at_every_cut(broken, tokenizer.encode("漢 a"))
