"""Rows of a source as a recipe names it: a path, or an entry of a `dataset_info.json`.

`FOLDER:NAME` reads entry NAME of FOLDER/dataset_info.json, the index that LLaMA-Factory keeps of its data: which file,
which `formatting` (`alpaca`, or `sharegpt` for lists of messages), which `columns` and `tags` are called otherwise.
Each row then has the keys that `rows.py` knows. The invariant its test checks: an entry with all its names changed
gives the records of the same rows with the usual names.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trivium.data.conversations import listed
from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.errors import UserError, nearest

INDEX = "dataset_info.json"

# What the index calls a column, and what rows.py calls it.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_BOTH = {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}
_DEFAULTS = {"messages": "conversations"}
_ROLES = {"user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call"}


def source_rows(path: str) -> Iterator[Row]:
    """The rows of a path or an index's entry. UserError for what is not there."""
    entry = _entry_of(path)
    return read_rows(path) if entry is None else _rows_of_entry(*entry)


def _entry_of(path: str) -> tuple[Path, str, Mapping[str, Any]] | None:
    """(folder, name, entry) where `path` is FOLDER:NAME of a folder with an index."""
    folder_name, mark, name = path.rpartition(":")
    folder = Path(os.path.expanduser(folder_name))  # noqa: PTH111 (as in locations.py)
    index = folder / INDEX
    if not mark or not folder_name or not folder.is_dir():
        return None
    if not index.is_file():
        raise UserError(f"{path}: {folder_name} has no {INDEX}, which would say what {name!r} is")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{index}: broken JSON: {error}") from None
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        known = entries if isinstance(entries, dict) else {}
        guess = nearest(name, known)
        hint = f"did you mean {guess}?" if guess else f"it has {', '.join(known) or 'none'}"
        raise UserError(f"{index}: has no entry {name!r}; {hint}")
    return folder, name, entries[name]


def _rows_of_entry(folder: Path, name: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    where = f"{folder / INDEX}, {name}"
    if "file_name" in entry:
        rows = read_rows(folder / str(entry["file_name"]))
    elif "hf_hub_url" in entry:
        config, split = entry.get("subset"), entry.get("split")
        rows = read_rows(str(entry["hf_hub_url"]) + (f":{config}" if config else "") + (f"@{split}" if split else ""))
    else:
        raise UserError(f"{where}: has neither file_name nor hf_hub_url (its keys: {listed(entry)})")
    formatting = entry.get("formatting", "alpaca")
    named = entry.get("columns") or {}
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{where}: formatting must be alpaca, sharegpt or openai, not {formatting!r}")
    known = {**_ALPACA, **_BOTH} if formatting == "alpaca" else {"messages": "conversations", **_BOTH}
    for column in named:
        if column not in known:
            raise UserError(f"{where}: columns.{column} is not known for {formatting} rows ({', '.join(known)})")
    limited = itertools.islice(rows, entry.get("num_samples"))
    if formatting == "alpaca":
        return (_alpaca_row(row, named, bool(entry.get("ranking"))) for row in limited)
    return (_messages_row(row, named, entry.get("tags") or {}) for row in limited)


def _alpaca_row(row: Row, named: Mapping[str, str], ranking: bool) -> Row:
    """Under the index's own names; a pair of answers has its question as `prompt`."""
    names = {column: named.get(column, usual) for column, usual in {**_ALPACA, **_BOTH}.items()}
    values = {
        known: row.values[names[column]]
        for column, known in {**_ALPACA, **_BOTH}.items()
        if names[column] in row.values
    }
    if ranking:
        asked = [str(values.pop(key)) for key in ("instruction", "input") if values.get(key)]
        values["prompt"] = "\n\n".join(asked)
    return replace(row, values=values)


def _messages_row(row: Row, named: Mapping[str, str], tags: Mapping[str, str]) -> Row:
    """Messages as {"from", "value"}, whatever their keys and roles are called."""
    values: dict[str, Any] = {}
    for column in ("messages", *_BOTH):
        key = named.get(column, _DEFAULTS.get(column, column))
        known = {**_BOTH, **_DEFAULTS}.get(column, column)
        if key in row.values:
            is_message = column in ("messages", "chosen", "rejected")
            value = row.values[key]
            values[known] = _untagged(value, tags) if is_message else value
    return replace(row, values=values)


def _untagged(value: Any, tags: Mapping[str, str]) -> Any:
    """Messages under the names that the tags stand for; what is none is left for `rows.py` to refuse."""
    if isinstance(value, list):
        return [_untagged(each, tags) for each in value]
    if not isinstance(value, dict):
        return value
    role_key, content_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    if role_key not in value or content_key not in value:
        return value
    roles = {tags.get(f"{role}_tag", usual): usual for role, usual in {**_ROLES, "system": "system"}.items()}
    kept = {key: item for key, item in value.items() if key not in (role_key, content_key)}
    return {**kept, "from": roles.get(value[role_key], value[role_key]), "value": value[content_key]}
