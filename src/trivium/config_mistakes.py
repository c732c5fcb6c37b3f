"""Pydantic's complaints in the user's words: which key, what is wrong with it, and the cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from trivium.config_schema import ITEM, annotations_at, choices, describe, fields_at, sections, tag_at
from trivium.errors import nearest
from trivium.yaml_text import Place, dotted


def by_key(values: Any, errors: list[ErrorDetails]) -> dict[Place, list[ErrorDetails]]:
    """Complaints by the key they are about; the branches of a union are not keys and are dropped."""
    grouped: dict[Place, list[ErrorDetails]] = {}
    for error in errors:
        place: Place = ()
        current = values
        for position, part in enumerate(error["loc"]):
            known = isinstance(current, Mapping) and part in current
            item = isinstance(current, list | tuple) and isinstance(part, int) and part < len(current)
            if known or item:
                current = current[part]
                place = (*place, part)
            elif error["type"] == "missing" and position == len(error["loc"]) - 1:
                place = (*place, part)
        grouped.setdefault(place, []).append(error)
    return grouped


def explain(cls: type[BaseModel], place: Place, errors: list[ErrorDetails]) -> str:
    """What is wrong with one key of `cls`, and the cure."""
    kinds = {error["type"] for error in errors}
    given = errors[0]["input"]
    if "extra_forbidden" in kinds:
        if elsewhere := _of_another_branch(cls, place, errors):
            return elsewhere
        return f"unknown key; {did_you_mean(cls, place)}"
    if kinds == {"missing"}:
        key = dotted(tuple(ITEM if isinstance(part, int) else part for part in place))
        doc = next((setting.doc for setting in describe(cls) if setting.key == key), "")
        return "is missing" + (f": {' '.join(doc.split())}" if doc else "; the list needs an item more")
    if kinds & {"model_type", "model_attributes_type", "dict_type"} and not isinstance(given, Mapping):
        keys = ", ".join(fields_at(cls, place)) or "free to choose"
        return f"is a section, not {_shown(given)}; its keys are {keys}"
    if kinds <= {"value_error", "assertion_error"} and isinstance(given, Mapping):
        return "; ".join(dict.fromkeys(_wish(error) for error in errors))
    wishes = [_wish(error) for error in errors if error["type"] not in ("literal_error", "enum")]
    words = [word for annotation in annotations_at(cls, place) for word in choices(annotation)]
    cure = "; write null for none" if given in ("None", "none") else ""
    if len(wishes) < len(errors) and words:
        wishes.append(f"must be one of {', '.join(dict.fromkeys(words))}")
        near = nearest(str(given), words)
        cure = f"; did you mean {near}?" if near else cure
    return f"{' or '.join(dict.fromkeys(wishes))}, not {_shown(given)}{cure}"


def _of_another_branch(cls: type[BaseModel], place: Place, errors: list[ErrorDetails]) -> str | None:
    """Where a section is one of a tagged union and the key belongs to others: the tag that was chosen, and theirs."""
    above, key = place[:-1], place[-1]
    branch = next((part for error in errors for part in error["loc"][-2:-1]), None)
    tag = tag_at(cls, above, branch)
    if tag is None or key not in fields_at(cls, above):
        return None
    others = [section for annotation in annotations_at(cls, above) for section in sections(annotation)]
    homes = [
        word for other in others if key in other.model_fields for word in choices(other.model_fields[tag].annotation)
    ]
    return f"{dotted((*above, tag))}={branch} has no such setting, only {', '.join(homes)}"


def did_you_mean(cls: type[BaseModel], place: Place) -> str:
    """The nearest key beside it, else of that name elsewhere, else the keys that exist here."""
    name = str(place[-1])
    beside = list(fields_at(cls, place[:-1]))
    if near := nearest(name, beside):
        return f"did you mean {near}?"
    everywhere = {setting.key: setting.key.rpartition(".")[2] for setting in describe(cls)}
    wanted = nearest(name, everywhere.values())
    if homes := [key for key, last in everywhere.items() if last == wanted]:
        return f"did you mean {' or '.join(homes[:3])}?"
    return f"the keys here are {', '.join(beside)}"


def _wish(error: ErrorDetails) -> str:
    """What was expected, beginning with `must` or in the words of the class's own check."""
    if error["type"] in ("value_error", "assertion_error"):
        return error["msg"].partition(", ")[2]
    wish = error["msg"].partition(", unable to")[0].replace("Input should", "must", 1)
    return wish[:1].lower() + wish[1:]


def _shown(value: Any) -> str:
    """A value as one would write it, cut where it is long."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = "null" if value is None else text
    return text if len(text) <= 60 else text[:57] + "..."
