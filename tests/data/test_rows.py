from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.rows import (
    Conversation,
    Labelled,
    Message,
    Pair,
    ParsedRow,
    Preference,
    Text,
    parse_row,
    text_of,
)
from trivium.errors import UserError

SYSTEM, USER, ASSISTANT = (
    lambda content, role=role: Message(role, content) for role in ("system", "user", "assistant")
)
HELLO = Conversation((USER("Hi"), ASSISTANT("Hello")))
CHATML = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
PREFERENCE = Preference((USER("Hi"),), (ASSISTANT("Hello"),), (ASSISTANT("Go"),))


def row(**values: Any) -> Row:
    return Row(values, "a.jsonl", 7)


KINDS: list[tuple[dict[str, Any], ParsedRow]] = [
    ({"text": "a"}, Text("a")),
    ({"text": "a", "id": 3, "label": None}, Text("a")),
    ({"text": "a", "label": 1}, Labelled("a", 1)),
    ({"text": "a", "label": False}, Labelled("a", False)),
    ({"text": "a", "label": "pos"}, Labelled("a", "pos")),
    ({"source": "a", "target": "b"}, Pair("a", "b")),
    ({"prompt": "Hi", "response": "Hello"}, HELLO),
    ({"prompt": "Hi", "completion": "Hello", "response": None}, HELLO),
    ({"prompt": CHATML[:1], "completion": CHATML[1:]}, HELLO),
    ({"messages": CHATML}, HELLO),
    ({"conversations": SHAREGPT}, HELLO),
    ({"conversations": SHAREGPT, "system": "Be brief"}, Conversation((SYSTEM("Be brief"), *HELLO.messages))),
    ({"instruction": "Hi", "output": "Hello"}, HELLO),
    ({"instruction": "Hi", "input": "", "output": "Hello", "system": ""}, HELLO),
    (
        {"instruction": "Add", "input": "1 2", "output": "3", "system": "Sums", "history": [["a", "b"], ["c", "d"]]},
        Conversation(
            (
                SYSTEM("Sums"),
                USER("a"),
                ASSISTANT("b"),
                USER("c"),
                ASSISTANT("d"),
                USER("Add\n\n1 2"),
                ASSISTANT("3"),
            )
        ),
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "It rains"},
            ]
        },
        Conversation((USER("Weather?"), ASSISTANT("{}"), Message("tool", "rain"), ASSISTANT("It rains"))),
    ),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, PREFERENCE),
    ({"prompt": CHATML[:1], "chosen": CHATML[1:], "rejected": "Go"}, PREFERENCE),
    ({"prompt": "Hi", "chosen": CHATML, "rejected": [CHATML[0], {"role": "assistant", "content": "Go"}]}, PREFERENCE),
    (
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "Go"}},
        PREFERENCE,
    ),
    ({"chosen": CHATML, "rejected": [CHATML[0], {"role": "assistant", "content": "Go"}]}, PREFERENCE),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}, PREFERENCE),
    ({"chosen": "Human: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant:Go"}, PREFERENCE),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello"},
        Preference((USER("Hi"),), (ASSISTANT("Hello"),), (ASSISTANT("Hello"),)),
    ),
]


@pytest.mark.parametrize(("values", "expected"), KINDS)
def test_kinds_are_told_apart_by_their_keys(values: dict[str, Any], expected: ParsedRow) -> None:
    assert parse_row(row(**values)) == expected


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"txt": "a"}, r"the keys 'txt' make no known kind of row \(.*\); did you mean 'text' by 'txt'\?"),
    ({"id": 1}, r"the keys 'id' make no known kind of row \(chosen \+ rejected; "),
    ({}, r"the keys \(none\) make no known kind"),
    (
        {"prompt": "a", "respons": "b"},
        r"the keys 'prompt', 'respons' lack 'response', which goes with 'prompt'; did you mean 'response' by 'respons'",
    ),
    ({"instruction": "a", "context": "b", "response": "c"}, r"lack "),
    ({"prompt": "a", "chosen": "b"}, r"lack 'rejected', which goes with 'chosen'"),
    ({"text": None}, r"the keys \(none\) make no known kind"),
    ({"text": 3}, r"'text' must be a text, not int"),
    ({"text": "a", "label": [1]}, r"'label' must be a text or a number, not list"),
    ({"source": "a", "target": ["b"]}, r"'target' must be a text, not list"),
    ({"messages": "Hi"}, r"'messages' must be a list of at least one message"),
    ({"messages": []}, r"'messages' must be a list of at least one message"),
    ({"messages": 3}, r"'messages' must be a text or a list of messages, not int"),
    ({"messages": ["Hi"]}, r"messages\[0\] must be an object with 'role' and 'content'"),
    (
        {"messages": [*CHATML, {"role": "asistant", "content": "x"}]},
        r"messages\[2\] has the role 'asistant'; did you mean 'assistant'\?",
    ),
    ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\] has the role \['user'\]"),
    ({"messages": [{"role": "user", "text": "x"}]}, r"needs 'role' and 'content' .*its keys: 'role', 'text'"),
    ({"messages": [{"role": "user", "content": None}]}, r"'messages\[0\]\.content' must be a text, not NoneType"),
    ({"instruction": "a", "output": "b", "history": "c"}, r"'history' must be a list of"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, r"'history' must hold \[question, answer\]"),
    ({"chosen": "Hello", "rejected": "Go"}, r"there is no 'prompt', so 'chosen' must be a whole conversation"),
    ({"prompt": "a", "chosen": [], "rejected": "Go"}, r"'chosen' and 'rejected' must each hold an answer"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_is_no_row_is_refused_with_place_and_cure(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.jsonl, row 7: .*{message}") as caught:
        parse_row(row(**values))
    assert "\n" not in str(caught.value)


def test_text_of_a_row() -> None:
    assert text_of(row(text="a", label=1)) == "a"
    assert text_of(row(content="b"), "content") == "b"
    assert text_of(row(text=None)) == ""
    with pytest.raises(UserError, match=r"row 7: has no 'text' \(its keys: 'txt', 'id'\); did you mean 'txt'\?"):
        text_of(row(txt="a", id=1))
    with pytest.raises(UserError, match=r"has no 'text' \(its keys: 'code'\); in a recipe data.text_key names it"):
        text_of(row(code="a"))
    with pytest.raises(UserError, match="'text' must be a text, not float"):
        text_of(row(text=1.5))


def test_real_rows(shared_data: Path) -> None:
    expected: dict[str, type] = {
        "alpaca/alpaca_en_demo_part1.json": Conversation,
        "alpaca/identity.json": Conversation,
        "sharegpt-demo/dummy_conversation.json": Conversation,
        "glaive-toolcall/glaive_toolcall_en_demo_part1.json": Conversation,
        "kto-demo/kto_en_demo_part1.json": Conversation,
        "dolly-hhrlhf/dolly_hhrlhf_part1.jsonl": Conversation,
        "dpo-demo/dpo_en_demo_part1.json": Preference,
        "hh-rlhf/harmless-base/test_part1.jsonl.gz": Preference,
        "imdb/imdb_part1.jsonl": Labelled,
        "c4-demo/c4_demo_part1.jsonl": Text,
    }
    for name, kind in expected.items():
        parsed = [parse_row(each) for each in read_rows(shared_data / name)]
        assert {type(each) for each in parsed} == {kind}, name


def test_hh_rlhf_pairs_share_all_but_the_last_answer(shared_data: Path) -> None:
    """Put together again, both transcripts are what the file holds."""
    for each in read_rows(shared_data / "hh-rlhf/harmless-base/test_part1.jsonl.gz"):
        parsed = parse_row(each)
        assert isinstance(parsed, Preference)
        names = {"user": "Human", "assistant": "Assistant"}
        for key, answers in (("chosen", parsed.chosen), ("rejected", parsed.rejected)):
            turns = (*parsed.prompt, *answers)
            text = "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in turns)
            assert text.replace(": ", ":").rstrip() == each.values[key].replace(": ", ":").rstrip()
        assert parsed.chosen[0].role == parsed.rejected[0].role
