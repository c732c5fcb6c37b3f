"""Words with tags: schemes become BIO, unknown tags are refused, and entities are learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetuning.head_runs import Small, written
from trivium.data.batch import IGNORED
from trivium.errors import UserError
from trivium.finetuning.entities_by_text import read, written_measures
from trivium.finetuning.entities_by_text import written as in_words
from trivium.finetuning.tagging import tag_measures
from trivium.generation.tagging import tag
from trivium.metrics.entities import entities_of
from trivium.progress import SILENT

PEOPLE, PLACES = ["Mira", "Pim Stone", "Odo", "Lena Marie Ems", "Karl"], ["Tarn", "Old Mill", "Asch", "Kiel"]


def sentences(scheme: str = "BIO") -> list[tuple[list[str], list[str]]]:
    """Who goes where, with both marked."""
    found = []
    for number in range(80):
        person, place = PEOPLE[number % 5], PLACES[number // 5 % 4]
        parts = [("today", "") if number % 2 else ("and so", ""), (person, "PER"), ("goes to", ""), (place, "LOC")]
        words, tags = [], []
        for text, kind in [*parts, (f"at {number}", "")]:
            some = text.split()
            words += some
            for place_in, _ in enumerate(some):
                begin, end = place_in == 0, place_in == len(some) - 1
                mark = "B" if begin else "I"
                if scheme == "BIOES":
                    mark = "S" if begin and end else "E" if end else mark
                elif scheme == "IOB1":
                    mark = "I"
                tags.append(f"{mark}-{kind}" if kind else "O")
        found.append((words, tags))
    return found


def columns(path: Path, scheme: str = "BIO") -> Path:
    rows = ["\n".join(f"{w} _ {t}" for w, t in zip(*each, strict=True)) for each in sentences(scheme)]
    path.write_text("\n\n".join(rows) + "\n")
    return path


LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_all_schemes_and_numbers_are_the_same_task(tmp_path: Path) -> None:
    rows = []
    for scheme in ("BIO", "BIOES", "IOB1"):
        task = Small(tmp_path, "tag", columns(tmp_path / f"{scheme}.conll", scheme)).prepare()
        assert task.labels == LABELS and task.head == "token_classification"
        rows.append([(e.ids.tolist(), e.target.tolist()) for e in task.train[0].rows.examples])
    numbered = [{"tokens": words, "tags": [LABELS.index(tag) for tag in tags]} for words, tags in sentences()]
    path = written(tmp_path / "numbers.jsonl", numbered)
    task = Small(tmp_path, {"name": "tag", "labels": LABELS}, path).prepare()
    rows.append([(e.ids.tolist(), e.target.tolist()) for e in task.train[0].rows.examples])
    assert rows[0] == rows[1] == rows[2] == rows[3]
    words = sum(len(words) for words, _ in sentences())
    held_out = task.held_out["numbers"].examples
    assert sum((e.target != IGNORED).sum() for e in [*task.train[0].rows.examples, *held_out]) == words


def test_one_token_of_each_word_is_learned(tmp_path: Path) -> None:
    small = Small(tmp_path, "tag", columns(tmp_path / "a.conll"), held_out_fraction=0)
    task = small.prepare()
    words, tags = sentences()[3]
    example = task.train[0].rows.row(3)
    assert [task.labels[number] for number in example.target if number != IGNORED] == tags
    assert len(example.ids) > len(words) + 2  # some words are several tokens
    assert example.ids.tolist() == small.tokenizer.wrap(small.tokenizer.encode(" ".join(words)))[0]
    assert task.facts is not None and task.facts["entities"] == {"PER": 80, "LOC": 80}


def test_entities_are_learned_and_wrong_tags_are_seen(tmp_path: Path) -> None:
    small = Small(tmp_path, "tag", columns(tmp_path / "a.conll"), held_out_fraction=0.3)
    task = small.prepare()
    model = small.trained(task, 45)
    values = small.measured(task, model)
    assert values["entity_f1"] > 0.95 and values["accuracy"] > 0.95
    assert {"entity_precision", "entity_recall", "entity_f1_PER", "entity_f1_LOC"} <= values.keys()
    words, tags = sentences()[2]
    assert tag(model, small.tokenizer, words) == tags
    shown = task.samples(model, SILENT)
    assert shown[0]["truth"].startswith("PER: ")
    # the broken control: every place is called a person
    wrong = columns(tmp_path / "b.conll")
    wrong.write_text(wrong.read_text().replace("LOC", "PER"))
    other = Small(tmp_path, {"name": "tag", "labels": LABELS}, wrong, held_out_fraction=0.3)
    worse = small.measured(task, other.trained(other.prepare(), 30))
    assert worse["entity_f1_LOC"] == 0 and worse["entity_f1"] < 0.7


def test_other_tags_than_of_entities_are_learned_too(tmp_path: Path) -> None:
    rows = [{"tokens": words, "tags": ["NUM" if w.isdigit() else "X" for w in words]} for words, _ in sentences()]
    small = Small(tmp_path, "tag", written(tmp_path / "pos.jsonl", rows), held_out_fraction=0.3)
    task = small.prepare()
    assert task.labels == ("NUM", "X")
    assert set(small.measured(task, small.trained(task, 2))) == {"accuracy", "f1_macro"}


def test_unknown_tags_and_cut_words_are_said(tmp_path: Path) -> None:
    path = columns(tmp_path / "a.conll")
    task = {"name": "tag", "labels": ("O", "B-PER", "I-PER")}
    with pytest.raises(UserError, match=r"a.conll, row 1.*the tag 'B-LOC' is none of the 3"):
        Small(tmp_path, task, path).prepare()
    odd = tmp_path / "odd.conll"
    odd.write_text(path.read_text() + "\nKarl _ BPER\n")
    with pytest.raises(UserError, match=r"odd.conll, row 81.*'BPER' is neither O nor a mark"):
        Small(tmp_path, "tag", odd).prepare()
    numbers = written(tmp_path / "n.jsonl", [{"tokens": ["a"], "tags": [7]}] * 3)
    with pytest.raises(UserError, match=r"name the classes, in the order of their numbers, in task\.labels"):
        Small(tmp_path, "tag", numbers).prepare()
    with pytest.raises(UserError, match=r"n\.jsonl, row 1: the tag 7 is the number of a class, there are 5"):
        Small(tmp_path, {"name": "tag", "labels": LABELS}, numbers).prepare()
    notes = Small(tmp_path, "tag", path, sequence_length=8).prepare().notes
    assert any("beyond 8 tokens and are cut" in note for note in notes)


def test_entities_in_words_read_back_and_are_scored_by_hand() -> None:
    for words, tags in sentences():
        text = in_words(words, tags)
        assert sorted(read(text)) == sorted((kind, " ".join(words[a:b])) for a, b, kind in entities_of(tags))
        assert written_measures([text], [text])["entity_f1"] == 1.0
    assert in_words(["a"], ["O"]) == "none" and not read("none")
    said, right = ["PER: Mira\nPER: Mira\nLOC: Kiel", "none"], ["PER: Mira\nLOC: Old Mill", "PER: Odo"]
    values = written_measures(said, right)
    assert values["entity_precision"] == pytest.approx(1 / 3) and values["entity_recall"] == pytest.approx(1 / 3)
    assert values["entity_f1_LOC"] == 0 and values["entity_f1_PER"] == pytest.approx(1 / 2)
    assert tag_measures([], [], True) == {}


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_by_text_the_entities_are_written(tmp_path: Path, kind: str) -> None:
    task = {"name": "tag", "generated_rows": 4, "max_new_tokens": 12}
    small = Small(tmp_path, task, columns(tmp_path / "a.conll"), kind, sequence_length=128)
    prepared = small.prepare()
    assert prepared.head == "lm" and prepared.labels == ()
    values = small.measured(prepared, small.trained(prepared, 2))
    assert {"entity_precision", "entity_recall", "entity_f1", "entity_f1_PER"} <= values.keys()
    sample = prepared.samples(small.trained(prepared, 1), SILENT)[0]
    assert sample["truth"].startswith("PER: ") and sample["prompt"].startswith("Write each LOC, PER of the text")
    words = [{"tokens": ["a", "b"], "tags": ["NN", "VB"]}] * 4
    with pytest.raises(UserError, match="these tags name none"):
        Small(tmp_path, task, written(tmp_path / "pos.jsonl", words), kind).prepare()
