"""Labelled rows of all kinds of files, for classes and for numbers: read, refused with their place, and learned."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetuning.head_runs import Small, written
from trivium.checkpoints.bundle import load
from trivium.data.row import Row
from trivium.errors import UserError
from trivium.finetuning.classification import written_measures
from trivium.finetuning.labelled_rows import ClassNumbers, Labelled, classes_of, labelled_of, number_of
from trivium.finetuning.run import finetune
from trivium.progress import SILENT

ANIMALS, TOOLS = ["cat", "dog", "horse", "cow"], ["hammer", "saw", "drill", "nail"]


def rows(count: int = 60) -> list[dict]:
    """Sentences about animals or tools, with the length as a number."""
    found = []
    for number in range(count):
        word = (TOOLS if number % 2 else ANIMALS)[number // 2 % 4]
        text = f"{'so ' * (number % 7)}here is {number} and one {word}"
        found.append({"text": text, "label": "tool" if number % 2 else "animal"})
    return found


def targets(small: Small) -> tuple[tuple[str, ...], list]:
    task = small.prepare()
    return task.labels, [(e.ids.tolist(), e.target) for e in task.train[0].rows.examples]


def test_all_kinds_of_files_are_the_same_task(tmp_path: Path) -> None:
    table = rows()
    paths = [written(tmp_path / "a.jsonl", table)]
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab")):
        paths.append(tmp_path / name)
        with paths[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], dialect=dialect)
            writer.writeheader()
            writer.writerows(table)
    paths.append(tmp_path / "a.parquet")
    parquet.write_table(pa.Table.from_pylist(table), paths[-1])
    paths.append(tmp_path / "a.json")
    paths[-1].write_text(json.dumps(table))
    found = [targets(Small(tmp_path, "classify", path)) for path in paths]
    assert all(each == found[0] for each in found)
    assert found[0][0] == ("animal", "tool")
    # numbers and true/false mean the classes in their order
    for name, label in (("n", lambda row: int(row["label"] == "tool")), ("b", lambda row: row["label"] == "tool")):
        path = written(tmp_path / f"{name}.jsonl", [{**row, "label": label(row)} for row in table])
        assert targets(Small(tmp_path, {"name": "classify", "labels": ("animal", "tool")}, path)) == found[0]
        assert targets(Small(tmp_path, "classify", path))[0] == (("0", "1") if name == "n" else ("false", "true"))


@pytest.mark.parametrize("keys", [("text", "pair"), ("sentence1", "sentence2"), ("premise", "hypothesis")])
def test_pairs_are_read_as_two_texts(tmp_path: Path, keys: tuple[str, str]) -> None:
    table = [{keys[0]: f"a {n} cat", keys[1]: "one " * (n % 9), "label": n % 3} for n in range(20)]
    small = Small(tmp_path, "classify", written(tmp_path / "a.jsonl", table), held_out_fraction=0)
    task = small.prepare()
    assert task.labels == ("0", "1", "2")
    for row, example in zip(table, task.train[0].rows.examples, strict=True):
        ids, types = small.tokenizer.wrap(*(small.tokenizer.encode(row[key]) for key in keys))
        assert example.ids.tolist() == ids
        assert example.types is None if not any(types) else example.types.tolist() == types
    assert any(example.types is not None for example in task.train[0].rows.examples)
    batch = task.train[0].rows.collate(task.train[0].rows.examples[:6])
    assert batch.types is not None and batch.types.max() == 1 and (batch.types[batch.segments == 0] == 0).all()


def test_long_pairs_lose_the_longer_text_first_and_it_is_said(tmp_path: Path) -> None:
    table = [{"text": "a cat", "pair": "one " * 90, "label": n % 2} for n in range(8)]
    small = Small(tmp_path, "classify", written(tmp_path / "a.jsonl", table), held_out_fraction=0, sequence_length=32)
    task = small.prepare()
    first = small.tokenizer.encode("a cat")
    assert task.train[0].rows.row(0).ids[1 : 1 + len(first)].tolist() == first
    assert len(task.train[0].rows.row(0).ids) == 32
    assert "8 texts were longer than 32 tokens and are cut" in task.notes


def test_classes_are_counted_and_columns_renamed(tmp_path: Path) -> None:
    table = [{"said": row["text"], "kind": row["label"], "label": "junk"} for row in rows()]
    path = written(tmp_path / "a.jsonl", table)
    train = [{"path": str(path), "columns": {"text": "said", "label": "kind"}, "max_rows": 50}]
    task = Small(tmp_path, "classify", train[0]["path"], train=train).prepare()
    assert task.facts is not None
    assert (
        task.facts["rows"] + task.facts["held_out_rows"] == 50 == len(task.train[0].rows) + task.facts["held_out_rows"]
    )
    assert sum(task.facts["classes"].values()) == task.facts["rows"]
    assert 0.5 <= task.facts["majority_baseline"] <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a", "label": 2}, r"row 1: the label '2' is none of the 2 classes \(animal, tool\); mend the row"),
        ({"text": "a", "label": "tols"}, "did you mean 'tool'"),
        ({"text": "a", "labl": "tool"}, r"row 1: has no 'label'.*columns: \{label: labl\}"),
        ({"label": "tool", "words": "a"}, r"row 1: has no 'text'.*columns: \{text: NAME\}"),
        ({"text": ["a"], "label": "tool"}, "row 1: 'text' must be a text, not list"),
        ({"text": "a", "label": {}}, "row 1: 'label' must be a text, a number"),
        ({"text": "a", "label": 0.5}, "row 1: the label 0.5 is no class but a number"),
    ],
)
def test_what_is_no_labelled_text_is_refused_with_its_place(tmp_path: Path, values: dict, message: str) -> None:
    path = written(tmp_path / "a.jsonl", [values] * 3)
    with pytest.raises(UserError, match=message):
        Small(tmp_path, {"name": "classify", "labels": ("animal", "tool")}, path).prepare()


def test_labels_and_numbers_by_hand() -> None:
    def example(label: object) -> Labelled:
        (found,) = labelled_of(Row({"text": "a", "label": label}, "f", 1))
        return found

    assert classes_of([example(label) for label in (10, 9, 2.0)]) == ("2", "9", "10")
    assert classes_of([example(label) for label in ("b", 10, "a")]) == ("10", "a", "b")
    assert [ClassNumbers(("no", "yes")).of(example(label)) for label in ("yes", 1, "1", True)] == [1] * 4
    assert ClassNumbers(("1", "0")).of(example(0)) == 1  # classes that are numbers are meant by name
    assert [number_of(example(label)) for label in ("3.5", 2)] == [3.5, 2.0]
    for label in (True, "x", "nan", "inf"):
        with pytest.raises(UserError, match=r"f, row 1: the label .* is no number"):
            number_of(example(label))


def test_one_class_alone_and_replay_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "a.jsonl", [{**row, "label": "tool"} for row in rows(8)])
    with pytest.raises(UserError, match="classes are tool: there must be two or more"):
        Small(tmp_path, "classify", one).prepare()
    path = written(tmp_path / "b.jsonl", rows(8))
    with pytest.raises(UserError, match="task=classify by a head writes nothing"):
        Small(tmp_path, "classify", path, replay={"share": 0.1}).prepare()
    with pytest.raises(UserError, match="an encoder writes no text"):
        Small(tmp_path, {"name": "classify", "by": "text"}, path).prepare()


def test_a_number_is_learned(tmp_path: Path) -> None:
    table = [{"text": row["text"], "label": row["text"].count("so ") / 2} for row in rows(80)]
    small = Small(tmp_path, "regress", written(tmp_path / "a.jsonl", table), held_out_fraction=0.3)
    task = small.prepare()
    assert task.labels == ("score",) and task.facts is not None
    model = small.trained(task, 35)
    values = small.measured(task, model)
    assert values["pearson"] > 0.9 and values["spearman"] > 0.9
    assert values["rmse"] < 0.5 * task.facts["mean_baseline_rmse"]
    sample = task.samples(model, SILENT)[0]
    assert float(sample["text"]) == pytest.approx(float(sample["truth"]), abs=1.5)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_by_text_the_class_is_written(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.jsonl", rows())
    task = {"name": "classify", "generated_rows": 6, "max_new_tokens": 6}
    small = Small(tmp_path, task, path, kind, held_out_fraction=0.3)
    prepared = small.prepare()
    assert prepared.head == "lm" and prepared.facts is not None and prepared.facts["classes"]
    model = small.trained(prepared, 50 if kind == "decoder" else 4)
    values = small.measured(prepared, model)
    assert {"accuracy", "f1_macro", "f1", "matthews_correlation", "told"} == values.keys()
    if kind == "decoder":
        assert values["told"] == 1.0
    assert prepared.samples(model, SILENT)[0]["truth"] in ("animal", "tool")
    by_head = Small(tmp_path, {"name": "classify", "by": "head"}, path, kind).prepare()
    assert by_head.head == "classification"


def test_written_classes_are_scored_by_hand() -> None:
    numbers = ClassNumbers(("no", "yes"))
    examples = [Labelled("", None, label, "") for label in ("yes", "no", "yes", "no")]
    values = written_measures([" Yes\n", "no", "perhaps", "yes"], examples, numbers)
    assert values["accuracy"] == 0.5 and values["told"] == 0.75
    assert values["f1_macro"] == pytest.approx((2 / 3 + 2 / 4) / 2)  # of the two classes, not of "perhaps"


SST2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "glue" / "SST-2" / "train_first5000.tsv"


@pytest.mark.long
@pytest.mark.skipif(not SST2.exists(), reason="the sentences of SST-2 are not here")
def test_a_published_encoder_tells_real_sentences_apart(tmp_path: Path) -> None:
    """All its weights, 60 steps of 16 rows: at least 15 points better than the commonest class."""
    recipe = {
        "run": str(tmp_path / "run"),
        "start_from": "minilm-l6",
        "task": "classify",
        "data": {
            "train": [{"path": str(SST2), "max_rows": 1000}],
            "held_out_fraction": 0.2,
            "sequence_length": 64,
            "rows_per_micro_batch": 16,
        },
        "training": {"steps": 60, "learning_rate": 1e-4},
        "forgetting": {"paths": []},
    }
    summary = finetune(recipe, ignore_plan=True)
    baseline = summary["data_facts"]["majority_baseline"]
    assert summary["held_out"]["held_out_accuracy"] > baseline + 0.15
    assert summary["held_out"]["held_out_matthews_correlation"] > 0.3
    assert summary["before"]["held_out_accuracy"] < baseline + 0.1
    bundle = load(tmp_path / "run" / "model")
    assert bundle.classify("a wonderful , moving and funny film").label == "1"
    assert bundle.classify("a dull , lifeless and boring mess").label == "0"
