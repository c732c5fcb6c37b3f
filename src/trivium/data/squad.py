"""Questions about a text, whose answers stand in it: SQuAD's json, versions 1.1 and 2.0, and flat rows.

An article of SQuAD (Rajpurkar et al., 2016, 2018) is `{"paragraphs": [{"context", "qas": [{"question", "answers":
[{"text", "answer_start"}], "is_impossible"}]}]}`. A flat row is `{"question", "context", "answers": {"text": [...],
"answer_start": [...]}}` (or the list of objects again). A question without answers cannot be answered from its text.
Invariant its test checks: every answer is the very characters of its context at the place given, or the row is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trivium.data.row import Row
from trivium.errors import UserError

ARTICLE_KEY = "paragraphs"


class AnswerText(NamedTuple):
    """One right answer."""

    text: str
    start: int
    """The character of the context at which it begins."""


@dataclass(frozen=True)
class Question:
    """A question, and the text in which its answer stands."""

    question: str
    context: str
    answers: tuple[AnswerText, ...]
    """All right answers; the first is the one to learn. Empty: the text does not say."""
    where: str = field(default="", compare=False)
    """File and row."""


def questions_of(row: Row) -> Iterator[Question]:
    """The questions of an article or of a flat row. UserError names file, row and what is wrong."""
    if ARTICLE_KEY not in row.values:
        yield _question(row.where, row.values, row.values.get("context"))
        return
    for number, paragraph in enumerate(_list(row.where, ARTICLE_KEY, row.values[ARTICLE_KEY]), 1):
        where = f"{row.where}, paragraph {number}"
        asked = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        for place, values in enumerate(_list(where, "qas", asked), 1):
            if not isinstance(values, Mapping):
                raise UserError(f"{where}, question {place}: must be an object with 'question' and 'answers'")
            yield _question(f"{where}, question {place}", values, paragraph.get("context"))


def _question(where: str, values: Mapping[str, Any], context: Any) -> Question:
    question = values.get("question")
    for key, value in (("question", question), ("context", context)):
        if not isinstance(value, str):
            found = "lacks it" if value is None else f"is {type(value).__name__}"
            raise UserError(f"{where}: {key!r} must be a text; this one {found} (keys: {', '.join(map(repr, values))})")
    assert isinstance(question, str) and isinstance(context, str)
    if values.get("is_impossible"):
        return Question(question, context, (), where)
    if "answers" not in values:
        raise UserError(f"{where}: lacks 'answers'; for a question that its text does not answer give an empty list")
    answers = tuple(_answer(where, each, context) for each in _pairs(where, values["answers"]))
    return Question(question, context, answers, where)


def _pairs(where: str, answers: Any) -> list[tuple[Any, Any]]:
    """(text, start) of each answer, of a list of objects or an object of lists."""
    if isinstance(answers, Mapping):
        texts, starts = (_list(where, f"answers.{key}", answers.get(key)) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise UserError(f"{where}: 'answers' has {len(texts)} texts and {len(starts)} places")
        return list(zip(texts, starts, strict=True))
    if not all(isinstance(each, Mapping) for each in _list(where, "answers", answers)):
        raise UserError(f"{where}: each of 'answers' must be an object with 'text' and 'answer_start'")
    return [(each.get("text"), each.get("answer_start")) for each in answers]


def _answer(where: str, pair: tuple[Any, Any], context: str) -> AnswerText:
    text, start = pair
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: the 'text' of an answer must be a text; where there is no answer, leave it out")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise UserError(f"{where}: the 'answer_start' of {text!r} must be a character's number, from 0")
    if context[start : start + len(text)] != text:
        there = context.find(text)
        cure = f"it stands at {there}" if there >= 0 else "it stands nowhere in the context"
        found = context[start : start + len(text)]
        raise UserError(f"{where}: at character {start} of the context is {found!r}, not the answer {text!r}; {cure}")
    return AnswerText(text, start)


def _list(where: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list" + (", and is not there" if value is None else ""))
    return value
