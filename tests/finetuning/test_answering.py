"""Questions with their answers in a text: targets in windows, what is lost is said, and spans are learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetuning.head_runs import Small, written
from trivium.data.squad import AnswerText, Question
from trivium.errors import UserError
from trivium.finetuning.answering import NOT_SAID, NOWHERE, answer_measures, as_answer
from trivium.generation.answering import answer
from trivium.progress import SILENT

NAMES, TOWNS = ["Mira", "Pim", "Odo", "Lena", "Karl"], ["Löwenberg", "Asch", "Old Mill", "Kiel", "Tarn", "Bonn"]


def questions(without: bool = False, count: int = 60) -> list[dict]:
    """Where someone goes; `without`: of each third nothing is said."""
    found = []
    for number in range(count):
        name, town = NAMES[number % 5], TOWNS[number // 5 % 6]
        context = f"{'It rains. ' * (number % 3)}Today  {name} goes to {town} number {number}. "
        if without and number % 3 == 0:
            found.append({"question": "what is eaten?", "context": context, "answers": []})
            continue
        answers = {"text": [town], "answer_start": [context.index(town)]}
        found.append({"question": f"where does {name} go?", "context": context, "answers": answers})
    return found


def test_targets_are_the_answer_in_every_window_that_holds_it(tmp_path: Path) -> None:
    table = [{**each, "context": each["context"] + "And then. " * 9} for each in questions()]
    path = written(tmp_path / "q.jsonl", table)
    small = Small(tmp_path, {"name": "answer", "stride": 10}, path, held_out_fraction=0, sequence_length=48)
    task = small.prepare()
    assert task.head == "span" and task.facts is not None
    examples = task.train[0].rows.examples
    assert task.facts["windows"] == len(examples) > task.facts["questions"] == 60
    held = [each for each in examples if each.target != NOWHERE]
    assert 60 <= len(held) < len(examples)
    said = {small.tokenizer.decode(each.ids[each.target[0] : each.target[1] + 1].tolist()).strip() for each in held}
    assert said == set(TOWNS)
    assert all(each.types is not None and each.types[each.target[0]] == 1 for each in held)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    long = "a very long way " * 20
    rows = [*questions(), {"question": "how far?", "context": long, "answers": [{"text": long, "answer_start": 0}]}]
    path = written(tmp_path / "q.jsonl", rows)
    task = Small(tmp_path, "answer", path, held_out_fraction=0, sequence_length=48).prepare()
    assert "1 questions are left out: no window of 48 tokens holds their answer whole" in task.notes
    with pytest.raises(UserError, match=r"q: no answer fits into a row"):
        Small(tmp_path, "answer", written(tmp_path / "q.jsonl", rows[-1:] * 3), sequence_length=48).prepare()


def test_spans_are_learned_and_wrong_ones_are_seen(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", questions(count=200))
    small = Small(tmp_path, "answer", path, held_out_fraction=0.3)
    task = small.prepare()
    model = small.trained(task, 80)
    values = small.measured(task, model)
    assert values["exact_match"] > 0.5 and values["f1"] >= values["exact_match"]
    asked = questions()[7]
    best = answer(model, small.tokenizer, asked["question"], asked["context"])[0]
    assert asked["context"][best.start : best.stop] == best.text
    assert task.samples(model, SILENT)[0]["truth"] in TOWNS
    # the broken control: the answer is said to be the word after it
    wrong = questions(count=200)
    for each in wrong:
        start = each["context"].index("number")
        each["answers"] = {"text": ["number"], "answer_start": [start]}
    other = Small(tmp_path, "answer", written(tmp_path / "w.jsonl", wrong), held_out_fraction=0.3)
    assert small.measured(task, other.trained(other.prepare(), 30))["exact_match"] < 0.2


def test_questions_without_an_answer_are_learned(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", questions(without=True))
    small = Small(tmp_path, "answer", path, held_out_fraction=0.3)
    task = small.prepare()
    assert task.facts is not None and task.facts["without_answer"] > 5
    values = small.measured(task, small.trained(task, 50))
    assert {"exact_match", "f1", "f1_with_answer", "accuracy_without_answer"} == values.keys()
    assert values["accuracy_without_answer"] > 0.8


def test_measures_by_hand() -> None:
    both = Question("", "the old mill", (AnswerText("the old mill", 0), AnswerText("mill", 8)))
    none = Question("", "nothing", ())
    values = answer_measures(["Old mill!", "x"], [both, none])
    assert values == {"exact_match": 0.5, "f1": 0.5, "f1_with_answer": 1.0, "accuracy_without_answer": 0.0}
    assert answer_measures(["", "old"], [none, both])["exact_match"] == 0.5
    assert answer_measures(["old"], [both])["f1"] == pytest.approx(2 / 3)
    assert answer_measures([], []) == {}
    said = [as_answer(text) for text in ("Not said", "", "mill")]  # nothing at all is not what was learned
    assert answer_measures(said, [none, none, both])["accuracy_without_answer"] == 0.5


def test_a_decoder_does_it_by_text_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", questions(without=True))
    task = {"name": "answer", "generated_rows": 5, "max_new_tokens": 8}
    small = Small(tmp_path, task, path, "decoder", held_out_fraction=0.3, sequence_length=128)
    prepared = small.prepare()
    values = small.measured(prepared, small.trained(prepared, 2))
    assert {"exact_match", "f1"} <= values.keys()
    truths = {sample["truth"] for sample in prepared.samples(small.trained(prepared, 1), SILENT)}
    assert truths <= {*TOWNS, NOT_SAID}
    with pytest.raises(UserError, match="a decoder has not read how it goes on"):
        Small(tmp_path, {**task, "by": "head"}, path, "decoder").prepare()
