"""A vocabulary is learned in bounded memory, the same one each time, and says what it left out."""

from __future__ import annotations

import random
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import UserError
from trivium.tokenizer import learning
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.learning import DEFAULT_SPECIAL_TOKENS

SMALLEST = 256 + len(DEFAULT_SPECIAL_TOKENS)


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total: int | None = None
        self.done = 0

    def start(self, description: str, total: int | None = None, unit: str = "") -> None:
        self.total = total if unit == "B" else self.total

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None:
        pass


def test_the_vocabulary_has_its_parts(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == 2000
    assert list(tokenizer.special_tokens) == list(DEFAULT_SPECIAL_TOKENS)
    assert list(tokenizer.special_tokens.values()) == [0, 1, 2, 3]
    assert sorted(tokenizer.decode_bytes([i]) for i in range(4, 260)) == [bytes([b]) for b in range(256)]
    assert all(len(tokenizer.decode_bytes([i])) >= 2 for i in range(260, 2000))


def test_bytes_alone_need_no_text() -> None:
    tokenizer = Tokenizer.train(vocab_size=SMALLEST)
    assert tokenizer.vocab_size == SMALLEST
    assert len(tokenizer.encode("añ")) == 3 and tokenizer.decode(tokenizer.encode("añ")) == "añ"


def test_files_and_texts_give_the_same_vocabulary_in_every_process(sources: list[Path], tmp_path: Path) -> None:
    files = sources[:12]
    tokenizer = Tokenizer.train(files, vocab_size=600)
    from_texts = Tokenizer.train(texts=(f.read_bytes().decode() for f in files), vocab_size=600)
    assert from_texts.fingerprint == tokenizer.fingerprint
    program = (
        "import sys; from trivium.tokenizer.bpe import Tokenizer\n"
        "Tokenizer.train(sys.argv[2:], vocab_size=600).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "other", *files], check=True)
    tokenizer.save(tmp_path / "here")
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_a_few_megabytes_take_seconds(sources: list[Path]) -> None:
    start = time.process_time()
    Tokenizer.train(sources, vocab_size=8192)
    assert time.process_time() - start < 10


def test_a_vocabulary_larger_than_the_text_supports() -> None:
    progress = Notes()
    tokenizer = Tokenizer.train(texts=["abab abab"], vocab_size=5000, progress=progress)
    assert SMALLEST < tokenizer.vocab_size < 270
    assert any("not the 5,000 asked for" in note for note in progress.notes)


def test_more_text_than_the_budget_is_sampled_evenly(sources: list[Path]) -> None:
    total = sum(path.stat().st_size for path in sources)
    budget = total // 5
    progress = Notes()
    sampled = Tokenizer.train(sources, vocab_size=600, max_text_bytes=budget, progress=progress)
    assert 0.95 * budget < progress.done <= budget
    assert progress.notes == [
        f"learned from {progress.done:,} of {total:,} bytes of text ({progress.done / total:.1%})"
    ]
    assert Tokenizer.train(sources, vocab_size=600, max_text_bytes=budget).fingerprint == sampled.fingerprint

    # The same for an iterator whose length nobody knows beforehand.
    progress = Notes()
    texts = [path.read_bytes().decode() for path in sources]
    sampled = Tokenizer.train(texts=iter(texts), vocab_size=600, max_text_bytes=budget, progress=progress)
    assert 0.3 * budget < progress.done <= budget and f"of {total:,} bytes" in progress.notes[0]
    again = Tokenizer.train(texts=iter(texts), vocab_size=600, max_text_bytes=budget)
    assert again.fingerprint == sampled.fingerprint


@given(st.integers(1, 12))
def test_thinning_is_nested_and_even(halvings: int) -> None:
    kept = [i for i in range(1 << 14) if learning._survives(i, halvings)]
    assert all(learning._survives(i, halvings - 1) for i in kept)
    expected = (1 << 14) / (1 << halvings)
    assert abs(len(kept) - expected) <= 2
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) <= 4 * (1 << halvings)


def test_the_iterator_is_never_held_whole() -> None:
    """What waits in memory stays within the budget: 40 MB of text through a budget of 1 MB."""
    import tracemalloc

    def texts() -> Iterator[str]:
        draw = random.Random(0)
        words = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(2000)]
        for _ in range(400):
            yield " ".join(draw.choices(words, k=15_000))

    tracemalloc.start()
    Tokenizer.train(texts=texts(), vocab_size=300, max_text_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20  # 16 MB of which are the word budget's table


def test_text_without_repetition_stops_at_the_word_budget() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices(string.ascii_letters + " ", k=20_000)) for _ in range(200)]
    progress = Notes()
    tokenizer = Tokenizer.train(texts=texts, vocab_size=400, max_word_bytes=500_000, progress=progress)
    assert tokenizer.vocab_size == 400
    assert 400_000 < progress.done < 700_000
    assert "max_word_bytes=500,000" in progress.notes[0] and "of 4,000,000 bytes" in progress.notes[1]


def test_words_are_cut_like_llama_3s() -> None:
    cases = {
        "I'll pay 12345, OK?\n\n  next": ["I", "'ll", " pay", " ", "123", "45", ",", " OK", "?\n\n", " ", " next"],
        "\tx = y_1  # ok": ["\tx", " =", " y", "_", "1", " ", " #", " ok"],
        "a" * 300: ["a" * 128, "a" * 128, "a" * 44],
        " " * 200 + "x": [" " * 128, " " * 71, " x"],
    }
    for text, words in cases.items():
        found = [text[a:b] for _, (a, b) in learning.byte_level_words().pre_tokenize_str(text)]
        assert found == words


def test_special_tokens_in_the_corpus_are_not_learned_from() -> None:
    text = "once<|endoftext|>upon<|endoftext|>a time" * 50
    tokenizer = Tokenizer.train(texts=[text], vocab_size=400)
    tokens = {tokenizer.token_of(i) for i in range(4, tokenizer.vocab_size)}
    assert not any("|" in token and len(token) > 1 for token in tokens)
    assert tokenizer.encode("<|endoftext|>", parse_special=True) == [0]


def test_further_special_tokens() -> None:
    tokenizer = Tokenizer.train(texts=["abc " * 9], vocab_size=262, extra_special_tokens=["<mask>", "<sep>"])
    assert tokenizer.special_tokens["<sep>"] == 5 and tokenizer.encode("<mask>", parse_special=True) == [4]


def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "mixed.txt"
    file.write_bytes("gut é \ufffd\n".encode() * 3 + b"\xff bad \xc3\n" + b"\x80" * 2)
    progress = Notes()
    Tokenizer.train([file], vocab_size=270, progress=progress)
    assert any(note.startswith("4 byte sequences were not UTF-8") for note in progress.notes)


@pytest.mark.parametrize("line", ["é" * 5000, "a" * 5000, "漢字" * 3000, "😀" * 2000])
def test_pieces_never_cut_a_character(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.txt").write_text(line, "utf-8")
    for size in (1024, 1025, 1026, 1027):
        pieces = list(learning._pieces_of_file(tmp_path / "x.txt", size))
        assert len(pieces) > 1 and "".join(piece.decode() for piece in pieces) == line
        assert list(learning._pieces_of_bytes(line.encode(), size))
        assert "".join(p.decode() for p in learning._pieces_of_bytes(line.encode(), size)) == line


@given(st.binary(max_size=200), st.integers(1, 20))
def test_pieces_are_the_whole(data: bytes, size: int) -> None:
    assert b"".join(learning._pieces_of_bytes(data, size)) == data


MISTAKES = {
    "too small": ({"vocab_size": 100}, "vocab_size=100 is outside 260"),
    "too large": ({"vocab_size": 10**12}, "vocab_size"),
    "missing file": ({"vocab_size": 300, "files": ["nowhere.txt"]}, "nowhere.txt is not a file"),
    "folder": ({"vocab_size": 300, "files": ["."]}, "is not a file"),
    "nothing": ({"vocab_size": 300}, "no text"),
    "empty texts": ({"vocab_size": 300, "texts": ["", ""]}, "no text"),
    "both": ({"vocab_size": 300, "files": [__file__], "texts": ["a"]}, "either files or texts"),
    "one text": ({"vocab_size": 300, "texts": "a text"}, "in brackets"),
    "one file": ({"vocab_size": 300, "files": "a.txt"}, "in brackets"),
    "no strings": ({"vocab_size": 300, "texts": [1]}, "must be strings"),
    "twice": ({"vocab_size": 300, "extra_special_tokens": ["<|pad|>"]}, "must be different"),
    "empty token": ({"vocab_size": 300, "extra_special_tokens": [""]}, "not empty"),
    "byte token": ({"vocab_size": 300, "extra_special_tokens": ["a"]}, "single byte"),
    "no budget": ({"vocab_size": 300, "texts": ["a"], "max_text_bytes": 0}, "max_text_bytes"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.train(**arguments)


def test_an_error_in_the_text_iterator_reaches_the_caller() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        Tokenizer.train(texts=texts(), vocab_size=300)
