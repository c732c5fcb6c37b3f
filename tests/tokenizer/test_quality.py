"""The quality report counts what can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.quality import quality_report


def test_counts_by_hand() -> None:
    tokenizer = Tokenizer.train(texts=["hello hello"] * 10, vocab_size=1000)
    merges = tokenizer.vocab_size - 260  # he, hel, ... and " hello"
    report = quality_report(tokenizer, ["hello hello", "x"])
    assert (report.num_bytes, report.num_tokens, report.num_words) == (12, 3, 3)
    assert report.bytes_per_token == 4 and report.tokens_per_word == 1
    assert report.vocab_size == 256 + merges and report.unused_entries == report.vocab_size - 3
    assert report.single_byte_share == pytest.approx(1 / 3)
    assert report.longest_token == " hello"


def test_on_the_text_it_was_learned_from(tokenizer: Tokenizer, sources: list[Path]) -> None:
    texts = [path.read_text("utf-8") for path in sources]
    report = quality_report(tokenizer, iter(texts))
    assert report.num_bytes == sum(len(text.encode()) for text in texts)
    assert report.num_tokens == sum(map(len, tokenizer.encode_batch(texts)))
    assert 2.5 < report.bytes_per_token < 4 and 0 <= report.unused_share < 0.2
    bytes_alone = quality_report(Tokenizer.train(vocab_size=260), texts[:5])
    assert bytes_alone.bytes_per_token == 1 and bytes_alone.single_byte_share == 1
    assert bytes_alone.unused_entries > 100


def test_as_table_and_as_dictionary(tokenizer: Tokenizer) -> None:
    report = quality_report(tokenizer, ["def f(): pass"])
    assert dict(report.rows())["bytes per token"] == f"{report.bytes_per_token:.3f}"
    assert report.to_dict()["unused_entries"] == report.unused_entries


def test_no_text_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no text"):
        quality_report(tokenizer, ["", ""])
