"""Words begin where BERT's splitting has them, in every kind of vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenizer.samples import ODD, texts
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.words import Edges, edges_of, starts_of


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each word."""
    ids = tokenizer.encode(text)
    found: list[list[int]] = []
    for token_id, starts in zip(ids, tokenizer.word_starts(ids), strict=True):
        if starts:
            found.append([])
        found[-1].append(token_id)
    return [tokenizer.decode(word) for word in found]


def as_bert_has_them(tokenizer: Tokenizer, starts: Any, chosen: list[str]) -> bool:
    """Compares with the words that the library numbers while it encodes."""
    for text in chosen:
        encoding = tokenizer._core.encode(text, add_special_tokens=False)
        numbers = encoding.word_ids
        expected = [i == 0 or numbers[i] != numbers[i - 1] for i in range(len(numbers))]
        if starts(encoding.ids) != expected:
            return False
    return True


def test_bert(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "bert-base-uncased")
    chosen = texts(shared_data)
    assert as_bert_has_them(tokenizer, tokenizer.word_starts, chosen)
    assert not as_bert_has_them(tokenizer, lambda ids: [True] * len(ids), chosen), "control"
    assert words(tokenizer, "Unaffable, isn't it? 漢日") == ["unaffable", ",", "isn", "'", "t", "it", "?", "漢", "日"]


def test_byte_level(tokenizer: Tokenizer) -> None:
    found = words(tokenizer, "The unbelievable teacher's, größer 漢字!\nx1 =")
    assert [word.strip(" ") for word in found if word.strip(" ")] == [
        "The", "unbelievable", "teacher", "'s", ",", "größer", "漢", "字", "!", "\n", "x1", "=",
    ]  # fmt: skip
    for text in ODD:
        ids = tokenizer.encode(text)
        starts = tokenizer.word_starts(ids)
        assert len(starts) == len(ids) and all(starts[:1]) and "".join(words(tokenizer, text)) == text
    single = [tokenizer._byte_ids[byte] for byte in "aé漢😀b".encode()]  # a token a byte
    assert tokenizer.word_starts(single) == [True, False, False, True, False, False, True, False, False, False, True]


def test_sentencepiece(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "sentencepiece" / "botchan_en_bpe_1000.model")
    ids = tokenizer.encode("The teacher's house, again")
    texts_of = [[]]
    for token_id, starts in zip(ids, tokenizer.word_starts(ids), strict=True):
        if starts:
            texts_of.append([])
        texts_of[-1].append(tokenizer.token_of(token_id).replace("▁", " "))
    assert ["".join(word) for word in texts_of[1:]] == [" The", " teacher", "'", "s", " house", ",", " again"]


def test_special_tokens_are_words(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b", parse_special=True)
    assert tokenizer.word_starts(ids) == [True, True, True]
    assert tokenizer.word_starts([]) == []


@pytest.mark.parametrize(
    ("data", "edges"),
    [
        (b"", Edges(None, None)),
        (b"a", Edges("letter", "letter")),
        (b" a.", Edges("space", "other")),
        ("é".encode()[:1], Edges("letter", "letter")),
        ("é".encode()[1:], Edges(None, None)),
        ("漢".encode()[:2], Edges("ideograph", "ideograph")),
        ("漢".encode()[1:] + b"a", Edges(None, "letter")),
        ("😀".encode()[:3], Edges("other", "other")),
        (b"\xff", Edges("other", "other")),
    ],
)
def test_edges(data: bytes, edges: Edges) -> None:
    assert edges_of(data) == edges
    assert starts_of([edges]) == [True]
