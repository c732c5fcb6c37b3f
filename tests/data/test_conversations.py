"""Messages under all the names that files give them, and real files read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivium.data.conversations import Conversation, Message
from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.rows import ParsedRow, Preference, Tokenized, parse_row, parse_rows
from trivium.errors import UserError


def parsed(**values: Any) -> ParsedRow:
    return parse_row(Row(values, "a.jsonl", 7))


USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("flags", "train"),
    [({}, None), ({"train": True}, True), ({"train": False}, False), ({"weight": 0}, False), ({"weight": 1}, True)],
)
def test_whether_a_message_is_learned(flags: dict[str, Any], train: bool | None) -> None:
    found = parsed(messages=[USER, {**ANSWER, **flags}])
    assert isinstance(found, Conversation)
    assert [each.train for each in found.messages] == [None, train]
    assert found.messages[1] == Message("assistant", "Hello", train)


def test_further_keys_are_kept_for_the_template() -> None:
    calls = [{"type": "function", "function": CALL}]
    found = parsed(messages=[{**USER, "name": "Ann"}, {"role": "assistant", "content": None, "tool_calls": calls}])
    assert isinstance(found, Conversation)
    assert found.messages[0].further == {"name": "Ann"}
    assert found.messages[1] == Message("assistant", "", None, {"tool_calls": calls})


def test_functions_of_sharegpt() -> None:
    turns = [
        {"from": "human", "value": "1?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ]
    tools = [{"name": "add"}]
    found = parsed(conversations=turns, tools=json.dumps(tools), system="Count.")
    assert isinstance(found, Conversation)
    assert [each.role for each in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2].further == {"tool_calls": [{"type": "function", "function": CALL}]}
    assert found.tools == tuple(tools)
    assert parsed(conversations=turns, tools=tools, system="Count.") == found, "tools may be the list itself"
    plain = parsed(conversations=[turns[0], {"from": "function_call", "value": "add(1)"}])
    assert isinstance(plain, Conversation) and plain.messages[1] == Message("assistant", "add(1)"), "no JSON: a text"


def test_prompts_of_messages_and_history() -> None:
    talk = parsed(prompt=[USER], completion=[ANSWER])
    assert talk == parsed(messages=[USER, ANSWER]) and isinstance(talk, Conversation) and not talk.is_plain
    plain = parsed(prompt="Hi", response="Hello")
    assert isinstance(plain, Conversation) and plain.is_plain
    past = parsed(instruction="c", input="", output="d", history=[["a", "b"]], system="S")
    assert isinstance(past, Conversation)
    assert [each.content for each in past.messages] == ["S", "a", "b", "c", "d"]


def test_ids_with_their_labels() -> None:
    assert parsed(input_ids=[1, 2, 3], labels=[-100, 2, 3]) == Tokenized((1, 2, 3), (-100, 2, 3))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER, {**ANSWER, "train": 1}]}, r"messages\[1\]\.train must be true or false, not 1"),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, r"messages\[1\]\.weight must be 0 or 1, not 0\.5"),
    ({"messages": [USER, {**ANSWER, "train": True, "weight": 0}]}, r"which contradict: remove one"),
    ({"messages": [{"role": "asistant", "content": "a"}]}, r"has the role 'asistant'; did you mean 'assistant'"),
    ({"messages": [{"content": "a"}]}, r"messages\[0\] needs 'role' and 'content'"),
    ({"messages": [USER], "tools": "no json"}, r"'tools' is a text that is no JSON"),
    ({"messages": [USER], "tools": [1]}, r"'tools' must be a list of objects"),
    ({"instruction": "a", "output": "b", "history": [["a"]]}, r"'history' must hold \[question, answer\]"),
    ({"input_ids": [1], "labels": [1, 2]}, r"1 'input_ids' and 2 'labels'"),
    ({"input_ids": [1, 2], "labels": [2, -100]}, r"label 0 is 2, where the id itself \(1\) or -100 must stand"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"a part of type 'image'"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_name_file_row_and_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parsed(**values)
    assert str(caught.value).startswith("a.jsonl, row 7: ") and "\n" not in str(caught.value)


SETS = {
    "alpaca/alpaca_en_demo_part1.json": ("instruction", "input", "output"),
    "alpaca/identity.json": ("instruction", "input", "output"),
    "self-instruct/seed_tasks.jsonl": ("instruction",),
    "dolly-hhrlhf/dolly_hhrlhf_part1.jsonl": ("prompt", "response"),
    "glaive-toolcall/glaive_toolcall_en_demo_part1.json": ("conversations",),
    "sharegpt-demo/dummy_conversation.json": ("conversations",),
    "dpo-demo/dpo_en_demo_part1.json": ("conversations", "chosen", "rejected"),
    "kto-demo/kto_en_demo_part1.json": ("messages",),
}


def strings(value: Any) -> list[str]:
    """All texts of a row that are said, whatever they are called."""
    if isinstance(value, dict):
        return strings(value.get("value", value.get("content")))
    return [text for each in value for text in strings(each)] if isinstance(value, list) else [value]


def said_by(record: ParsedRow) -> list[str]:
    """All that the messages of a record say; calls as the names of what is called."""
    turns = record.messages if isinstance(record, Conversation) else ()
    if isinstance(record, Preference):
        turns = (*record.prompt, *record.chosen, *record.rejected)
    calls = [call["function"]["name"] for each in turns for call in each.further.get("tool_calls", ())]
    return [*(each.content for each in turns), *calls]


@pytest.mark.parametrize("name", SETS)
def test_every_real_set_is_read_whole_and_says_what_the_file_says(shared_data: Path, name: str) -> None:
    if not (shared_data / name).is_file():
        pytest.skip(f"{name} is not there")
    count = 0
    for row in read_rows(shared_data / name):
        records = list(parse_rows(row))
        said = "\x00".join(text for record in records for text in said_by(record))
        expected = [text for key in SETS[name] for text in strings(row.values.get(key) or "")]
        for text in expected:
            is_call = text.startswith(('{"name"', '[{"name"'))
            wanted = [call["name"] for call in as_list(json.loads(text))] if is_call and text not in said else [text]
            assert all(each in said for each in wanted), (row.where, text[:60])
        count += bool(records)
    assert count > (10 if "sharegpt" not in name else 0)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
