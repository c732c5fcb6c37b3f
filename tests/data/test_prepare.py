from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.samples import ByteTokenizer
from trivium.data.prepare import prepare, texts, training_texts
from trivium.data.settings import DataSettings
from trivium.data.shards import Shards
from trivium.data.split import is_held_out
from trivium.errors import UserError
from trivium.tokenizer.bpe import Tokenizer


def documents_of(shards: Shards | None, tokenizer: Any = None) -> list[str]:
    tokenizer = tokenizer or ByteTokenizer()
    assert shards is not None
    return [tokenizer.decode(shards.document(number)[:-1].tolist()) for number in range(shards.num_documents)]


class CountingTokenizer(ByteTokenizer):
    """Counts the characters it is asked to encode."""

    def __init__(self) -> None:
        self.characters = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.characters += sum(map(len, texts))
        return super().encode_batch(texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    documents = [f"document number {number}" for number in range(100)]
    (path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in documents[:60]))
    (path / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in documents[60:]).encode())
    )
    (path / "c.txt").write_text("a document of its own")
    return path


ALL = [f"document number {number}" for number in range(100)] + ["a document of its own"]


def test_documents_are_split_by_hash_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(train=str(folder), held_out_fraction=0.2)
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    assert documents_of(prepared.train[0][0]) == [text for text in ALL if not is_held_out(text, 0.2)]
    assert documents_of(prepared.held_out) == [text for text in ALL if is_held_out(text, 0.2)]
    assert list(training_texts(settings)) == documents_of(prepared.train[0][0])


def test_the_tail_of_one_long_text(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    (tmp_path / "book.txt").write_text(text)
    settings = DataSettings(train=str(tmp_path / "book.txt"), held_out_by="tail", held_out_fraction=0.1)
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    cut = int(len(text) * 0.9)
    assert documents_of(prepared.train[0][0]) == [text[:cut]]
    assert documents_of(prepared.held_out) == [text[cut:]]
    assert list(training_texts(settings)) == [text[:cut]]


def test_tiny_shakespeare_is_split_as_everyone_splits_it(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tinyshakespeare" / "input.txt"
    settings = DataSettings(train=str(path), held_out_by="tail", held_out_fraction=0.1)
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    assert prepared.held_out is not None
    assert prepared.train[0][0].num_bytes == 1_003_854 and prepared.held_out.num_bytes == 111_540


def test_a_validation_file_leaves_the_training_text_whole(folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(train=str(folder / "a.jsonl"), validation=str(folder / "b.jsonl.gz"))
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    assert documents_of(prepared.train[0][0]) == ALL[:60]
    assert documents_of(prepared.held_out) == ALL[60:100]
    whole = DataSettings(train=str(folder), held_out_fraction=0.0)
    assert prepare(whole, ByteTokenizer(), tmp_path / "cache").held_out is None


def test_sources_keep_their_weights_and_share_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / name) for name in ("a.jsonl", "b.jsonl.gz")]
    train = [{"path": path, "weight": weight} for path, weight in zip(paths, (0.25, 0.75), strict=True)]
    settings = DataSettings.model_validate({"train": train, "held_out_fraction": 0.2})
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    assert [weight for _, weight in prepared.train] == [0.25, 0.75]
    trained = [text for shards, _ in prepared.train for text in documents_of(shards)]
    assert sorted(trained + documents_of(prepared.held_out)) == sorted(ALL[:100])


def test_limits(folder: Path) -> None:
    settings = DataSettings(train=[str(folder), str(folder / "b.jsonl.gz")], max_documents=3)
    assert list(texts(settings, [source.path for source in settings.train], "all")) == [*ALL[:3], *ALL[60:63]]
    settings = DataSettings(train=str(folder), max_bytes=2 * len(ALL[0]) + 1)
    assert list(texts(settings, [str(folder)], "all")) == ALL[:3]


def test_the_text_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "one", "text": "no"}\n')
    (tmp_path / "b.txt").write_text("two")
    settings = DataSettings(train=str(tmp_path), text_key="content")
    assert list(texts(settings, [str(tmp_path)], "all")) == ["one", "two"]
    with pytest.raises(UserError, match=r"a\.jsonl, row 1: has no 'body'"):
        list(texts(settings.model_copy(update={"text_key": "body"}), [str(tmp_path)], "all"))


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    settings = DataSettings(train=str(tmp_path / "a.txt"), text_layout="line")
    assert list(texts(settings, [str(tmp_path / "a.txt")], "all")) == ["one", "two"]


def test_the_cache_is_used_exactly_when_nothing_changed(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer()

    def encoded(**changes: Any) -> int:
        tokenizer.characters = 0
        settings = DataSettings.model_validate({"train": str(folder), "held_out_fraction": 0.2, **changes})
        prepare(settings, tokenizer, tmp_path / "cache")
        return tokenizer.characters

    assert encoded() > 1000
    assert encoded() == 0
    assert encoded(sequence_length=64, rows_per_step=2, verify_cache=False) == 0, "what is no matter of the ids"
    assert encoded(held_out_fraction=0.3) > 0
    assert encoded(max_documents=50) > 0
    assert encoded(held_out_by="tail") > 0
    assert encoded() == 0, "each has a place of its own"
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert encoded(train=str(moved)) == 0, "the same files elsewhere are the same"
    (moved / "c.txt").write_text("a document of its 0wn")
    assert encoded(train=str(moved)) > 0, "same length, other content"
    tokenizer.fingerprint = "another"
    assert encoded(train=str(moved)) > 0
    tokenizer.bos_id = None
    assert encoded(train=str(moved)) > 0, "documents begin with another id"


def test_a_damaged_cache_is_mended_and_said(folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(train=str(folder), held_out_fraction=0.0)
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    tokens = prepared.train[0][0].directory / "tokens-00000.bin"
    data = bytearray(tokens.read_bytes())
    data[10] ^= 1
    tokens.write_bytes(data)
    notes: list[str] = []

    class Notes:
        def start(self, description: str, total: int | None = None, unit: str = "") -> None: ...
        def advance(self, amount: int = 1) -> None: ...
        def finish(self) -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

    again = prepare(settings, ByteTokenizer(), tmp_path / "cache", Notes())
    assert documents_of(again.train[0][0]) == ALL
    assert len(notes) == 1 and "tokens-00000.bin" in notes[0]


def test_nothing_to_train_on_or_to_hold_out_is_said(folder: Path, tmp_path: Path) -> None:
    one = DataSettings(train=str(folder / "c.txt"))
    with pytest.raises(UserError, match=r"no text is held out: .*set data.held_out_by=tail"):
        prepare(one, ByteTokenizer(), tmp_path / "cache")
    (tmp_path / "blank.txt").write_text("  \n ")
    blank = DataSettings(train=str(tmp_path / "blank.txt"))
    with pytest.raises(UserError, match=r"blank\.txt: no text is left to train on"):
        prepare(blank, ByteTokenizer(), tmp_path / "cache")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(DataSettings(train=str(folder / "d.txt")), ByteTokenizer(), tmp_path / "cache")


def test_the_standard_library_with_a_learned_tokenizer(tmp_path: Path) -> None:
    settings = DataSettings(train="stdlib", held_out_fraction=0.1, max_bytes=1_000_000)
    tokenizer = Tokenizer.train(texts=training_texts(settings), vocab_size=1000)
    prepared = prepare(settings, tokenizer, tmp_path / "cache")
    shards = prepared.train[0][0]
    assert documents_of(shards, tokenizer) == [text for text in training_texts(settings) if not text.isspace()]
    assert prepared.held_out is not None and prepared.held_out.num_documents > 0
    assert 2 < shards.num_bytes / shards.num_tokens < 6


def test_the_users_cache_folder_is_the_default(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    prepare(DataSettings(train=str(folder), held_out_fraction=0.0), ByteTokenizer())
    assert [path.name[:6] for path in (tmp_path / "home/trivium/shards").glob("train-*")] == ["train-"]
    chosen = DataSettings(train=str(folder), held_out_fraction=0.0, cache_directory=str(tmp_path / "chosen"))
    prepare(chosen, ByteTokenizer())
    assert list((tmp_path / "chosen").glob("train-*"))
