"""Pairs: read from rows and from parallel files, split without leaks, both sides in step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.samples import ByteTokenizer
from trivium.data.pairs import held_out_pairs, prepare_pairs, read_pairs, training_pair_texts
from trivium.data.rows import Pair
from trivium.data.settings import DataSettings
from trivium.errors import UserError

PAIRS = [Pair(f"source {n}", f"target {n}" * (1 + n % 3)) for n in range(60)]
EN_DE = ("en", "de")


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def parallel(tmp_path: Path) -> str:
    (tmp_path / "train.en").write_text("".join(pair.source + "\n" for pair in PAIRS))
    (tmp_path / "train.de").write_text("".join(pair.target + "\r\n" for pair in PAIRS))
    return str(tmp_path / "train")


def test_rows_and_parallel_files_give_the_same_pairs(tmp_path: Path, parallel: str) -> None:
    rows = jsonl(tmp_path / "a.jsonl", [{"source": pair.source, "target": pair.target} for pair in PAIRS])
    asked = jsonl(tmp_path / "b.jsonl", [{"prompt": pair.source, "response": pair.target} for pair in PAIRS])
    assert list(read_pairs(parallel, EN_DE)) == list(read_pairs(rows, None)) == list(read_pairs(asked, None)) == PAIRS


def test_what_is_no_pair_is_named(tmp_path: Path, parallel: str) -> None:
    with pytest.raises(UserError, match=r"c.jsonl, row 1: is no pair .*'text'.*objective.languages"):
        list(read_pairs(jsonl(tmp_path / "c.jsonl", [{"text": "x"}]), None))
    with pytest.raises(UserError, match=r"d.jsonl, row 2: the target is empty"):
        rows: list[dict[str, object]] = [{"source": "a", "target": "b"}, {"source": "a", "target": " "}]
        list(read_pairs(jsonl(tmp_path / "d.jsonl", rows), None))
    with pytest.raises(UserError, match=r"train.fr: there is no such file"):
        list(read_pairs(parallel, ("en", "fr")))
    (tmp_path / "train.short").write_text("one\n")
    with pytest.raises(UserError, match=r"train.short ends before line 2, which .*train.en has"):
        list(read_pairs(parallel, ("en", "short")))


def test_both_sides_stay_in_step_and_nothing_is_on_both_sides_of_the_split(parallel: str, tmp_path: Path) -> None:
    settings = DataSettings(train=parallel, held_out_fraction=0.3, sequence_length=32)
    prepared = prepare_pairs(settings, EN_DE, ByteTokenizer(), tmp_path / "cache")
    ((train, _),) = prepared.train
    held_out = prepared.held_out
    assert held_out is not None
    found = []
    for shards in (train, held_out):
        assert shards.sources.num_documents == shards.targets.num_documents
        for number in range(shards.num_documents):
            sides = [side.document(number)[:-1].tolist() for side in (shards.sources, shards.targets)]
            found.append(Pair(*(ByteTokenizer().decode(side) for side in sides)))
    assert sorted(found, key=str) == sorted(PAIRS, key=str)
    kept = set(held_out_pairs(settings, EN_DE))
    assert len(kept) == held_out.num_documents and 5 < len(kept) < 40
    assert not {text for pair in kept for text in (pair.source,)} & set(training_pair_texts(settings, EN_DE))
    again = prepare_pairs(settings, EN_DE, ByteTokenizer(), tmp_path / "cache")
    assert again.train[0][0].sources.directory == train.sources.directory, "found, not built again"


def test_changed_files_are_tokenized_anew(parallel: str, tmp_path: Path) -> None:
    settings = DataSettings(train=parallel, held_out_fraction=0, sequence_length=32)
    first = prepare_pairs(settings, EN_DE, ByteTokenizer(), tmp_path / "cache").train[0][0]
    text = Path(parallel + ".de").read_text()
    Path(parallel + ".de").write_text(text.replace("target 7", "target seven"))
    second = prepare_pairs(settings, EN_DE, ByteTokenizer(), tmp_path / "cache").train[0][0]
    assert first.targets.directory != second.targets.directory
    limited = settings.model_copy(update={"max_documents": 5})
    assert prepare_pairs(limited, EN_DE, ByteTokenizer(), tmp_path / "cache").train[0][0].num_documents == 5
    with pytest.raises(UserError, match="pairs cannot be cut"):
        tail = settings.model_copy(update={"held_out_by": "tail"})
        prepare_pairs(tail, EN_DE, ByteTokenizer(), tmp_path / "cache")


def test_real_parallel_text(shared_data: Path) -> None:
    pairs = list(read_pairs(str(shared_data / "multi30k" / "val"), EN_DE))
    assert len(pairs) == 1014
    assert pairs[1] == Pair(
        "A man sleeping in a green room on a couch.", "Ein Mann schläft in einem grünen Raum auf einem Sofa."
    )
