"""The index of data sets that LLaMA-Factory keeps: its names for files, columns and roles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivium.data.dataset_info import source_rows
from trivium.data.rows import Conversation, Preference, parse_row
from trivium.errors import UserError

PLAIN = [{"instruction": f"ask {n}", "input": "this", "output": f"answer {n}", "system": "S"} for n in range(5)]
TALK = [
    {"conversations": [{"from": "human", "value": f"ask {n}"}, {"from": "gpt", "value": "b"}], "system": "S"}
    for n in range(5)
]


def index(folder: Path, rows: list[dict[str, Any]], **entry: Any) -> str:
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json", **entry}, "other": {}}))
    return f"{folder}:mine"


def records(path: str) -> list[Any]:
    return [parse_row(row) for row in source_rows(path)]


def test_an_entry_with_all_names_changed_gives_the_same_records(tmp_path: Path) -> None:
    expected = records(index(tmp_path, PLAIN))
    assert len(expected) == 5 and isinstance(expected[0], Conversation)
    names = {"prompt": "q", "query": "more", "response": "a", "system": "sys"}
    usual = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    renamed = [{names[key]: row[usual[key]] for key in names} for row in PLAIN]
    assert records(index(tmp_path, renamed, columns=names)) == expected
    path = index(tmp_path, renamed)  # control: without the columns
    with pytest.raises(UserError, match="make no known kind of row"):
        records(path)


def test_messages_with_all_names_changed(tmp_path: Path) -> None:
    expected = records(index(tmp_path, TALK, formatting="sharegpt"))
    rows = [
        {
            "talk": [
                {"who": "U" if turn["from"] == "human" else "A", "says": turn["value"]} for turn in row["conversations"]
            ],
            "sys": "S",
        }
        for row in TALK
    ]
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "sys"}, "tags": tags}
    assert records(index(tmp_path, rows, **entry)) == expected
    assert [each.role for each in expected[0].messages] == ["system", "user", "assistant"]


def test_pairs_of_answers_and_judged_answers(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}]
    (pair,) = records(index(tmp_path, rows, ranking=True))
    assert isinstance(pair, Preference) and pair.prompt[0].content == "a\n\nb"
    judged = [{"messages": TALK[0]["conversations"], "good": False}]
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "good"}}
    (one,) = records(index(tmp_path, judged, **entry))
    assert isinstance(one, Conversation) and one.liked is False


def test_fewer_rows(tmp_path: Path) -> None:
    assert len(records(index(tmp_path, PLAIN, num_samples=2))) == 2


REAL = ("glaive_toolcall_en_demo", "dpo_en_demo", "kto_en_demo", "alpaca_en_demo", "identity")


@pytest.mark.parametrize("name", REAL)
def test_real_entries_read_as_the_files_alone(shared_data: Path, tmp_path: Path, name: str) -> None:
    given = shared_data / "alpaca" / "dataset_info_excerpt.json"
    files = [*shared_data.glob(f"*/{name}_part1.json"), *shared_data.glob(f"*/{name}.json")]
    if not given.is_file() or not files:
        pytest.skip("the set is not there")
    entry = json.loads(given.read_text())[name]
    (tmp_path / entry["file_name"]).write_bytes(files[0].read_bytes())
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: entry}))
    assert records(f"{tmp_path}:{name}") == records(str(files[0]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"formatting": "chatty"}, "formatting must be alpaca, sharegpt or openai, not 'chatty'"),
        ({"columns": {"promt": "q"}}, r"columns\.promt is not known for alpaca rows"),
    ],
)
def test_mistakes_of_an_entry(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        records(index(tmp_path, PLAIN, **entry))


def test_entries_that_are_not_there(tmp_path: Path) -> None:
    path = index(tmp_path, PLAIN)
    with pytest.raises(UserError, match="has no entry 'mien'; did you mean mine"):
        records(path.replace("mine", "mien"))
    with pytest.raises(UserError, match="other: has neither file_name nor hf_hub_url"):
        records(path.replace("mine", "other"))
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        records(path)
    (tmp_path / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset_info\.json"):
        records(path)
