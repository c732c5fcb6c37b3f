"""SQuAD's files and flat rows: read as they stand, refused with their place where an answer is not in its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.squad import AnswerText, Question, questions_of
from trivium.errors import UserError

TEXT = "Mira keeps two goats near Löwenberg. The older goat is called Pim."
ANSWERED = {"question": "Who keeps goats?", "id": "a", "answers": [{"text": "Mira", "answer_start": 0}]}
IMPOSSIBLE = {"question": "Who keeps hens?", "answers": [], "is_impossible": True, "plausible_answers": []}


def article(*asked: dict[str, Any]) -> dict[str, Any]:
    return {"title": "Goats", "paragraphs": [{"context": TEXT, "qas": list(asked)}]}


def read(path: Path) -> list[Question]:
    return [question for row in read_rows(path) for question in questions_of(row)]


def test_an_article_file_of_version_2_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "train-v2.0.json"
    older = {"question": "Which goat is Pim?", "answers": [{"text": "The older goat", "answer_start": 37}] * 2}
    path.write_text(json.dumps({"version": "v2.0", "data": [article(ANSWERED, IMPOSSIBLE), article(older)]}))
    found = read(path)
    assert [each.question for each in found] == ["Who keeps goats?", "Who keeps hens?", "Which goat is Pim?"]
    assert found[0] == Question("Who keeps goats?", TEXT, (AnswerText("Mira", 0),))
    assert found[1].answers == ()
    assert len(found[2].answers) == 2
    assert all(TEXT[a.start : a.start + len(a.text)] == a.text for each in found for a in each.answers)


def test_flat_rows_in_both_forms_are_the_same_questions(tmp_path: Path) -> None:
    lists = {"question": "Where?", "context": TEXT, "answers": {"text": ["Löwenberg"], "answer_start": [26]}}
    objects = {**lists, "answers": [{"text": "Löwenberg", "answer_start": 26}]}
    nothing = {**lists, "answers": {"text": [], "answer_start": []}}
    path = tmp_path / "flat.jsonl"
    path.write_text("\n".join(map(json.dumps, (lists, objects, nothing))))
    first, second, third = read(path)
    assert first == second
    assert third.answers == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**ANSWERED, "answers": [{"text": "Mira", "answer_start": 1}]}, "at character 1 .* 'ira ', .*it stands at 0"),
        ({**ANSWERED, "answers": [{"text": "Nora", "answer_start": 0}]}, "it stands nowhere"),
        ({**ANSWERED, "answers": [{"text": "Mira", "answer_start": -5}]}, "'answer_start' of 'Mira' must be"),
        ({**ANSWERED, "answers": [{"text": "", "answer_start": 0}]}, "leave it out"),
        ({"question": "Who?"}, "lacks 'answers'"),
        ({"answers": []}, "'question' must be a text; this one lacks it"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(values: dict[str, Any], message: str) -> None:
    row = Row(article(ANSWERED, values), "squad.json", 7)
    with pytest.raises(UserError, match=f"squad.json, row 7, paragraph 1, question 2: .*{message}"):
        list(questions_of(row))


def test_unequal_lists_are_refused() -> None:
    values = {"question": "Where?", "context": TEXT, "answers": {"text": ["Pim"], "answer_start": [1, 2]}}
    with pytest.raises(UserError, match=r"flat\.jsonl, row 3: 'answers' has 1 texts and 2 places"):
        list(questions_of(Row(values, "flat.jsonl", 3)))
