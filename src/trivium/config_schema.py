"""What a settings class allows: its keys, their types in words, their choices, defaults and docstrings.

Works on any pydantic model whose sections are pydantic models; `config.py` builds on it, and so does
`--help`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trivium import yaml_text
from trivium.yaml_text import Place

ITEM = "N"
"""Stands for the number of an item in the keys of a list of sections."""
CHOICES = "one of: "


def leaves(annotation: Any) -> Iterator[Any]:
    """The types inside an annotation: `list[A | None]` gives A and NoneType; a `Literal` is a leaf."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from leaves(inner)


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation."""
    return [t for t in leaves(annotation) if isinstance(t, type) and issubclass(t, BaseModel)]


def choices(annotation: Any) -> list[str]:
    """The words a `Literal` inside an annotation allows."""
    literals = [t for t in leaves(annotation) if get_origin(t) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]


def annotations_at(cls: type[BaseModel], place: Place) -> list[Any]:
    """What may stand at `place` (several, where a section is a union); indices and free keys are passed over."""
    found: list[Any] = [cls]
    for part in place:
        fields = [
            section.model_fields[part]
            for annotation in found
            for section in sections(annotation)
            if isinstance(part, str) and part in section.model_fields
        ]
        if fields:
            found = [info.annotation for info in fields]
    return found


def fields_at(cls: type[BaseModel], place: Place) -> dict[str, FieldInfo]:
    """The keys that the section at `place` knows."""
    classes = [section for annotation in annotations_at(cls, place) for section in sections(annotation)]
    return {name: info for section in classes for name, info in section.model_fields.items()}


def tag_at(cls: type[BaseModel], place: Place, word: Any) -> str | None:
    """The key that tells the sections of a union at `place` apart, if `word` is one of its choices."""
    inside = [section for annotation in annotations_at(cls, place) for section in sections(annotation)]
    keys = (
        name for section in inside for name, info in section.model_fields.items() if word in choices(info.annotation)
    )
    return next(keys, None) if len(inside) > 1 else None


@dataclass(frozen=True)
class Described:
    """One setting, as `--help` shows it."""

    key: str
    """Dotted from the recipe's top."""
    type: str
    """Its type in words: `int > 0`, `one of: rmsnorm, layernorm`, `list of text or null`."""
    default: str | None
    """As one would write it; None when it must be given."""
    doc: str
    """Its docstring."""


def describe(cls: type[BaseModel]) -> list[Described]:
    """Every setting below `cls` in the order of the code.

    Those of a section are named `section.key`, and those of a list of sections `section.N.key`. Where sections of a
    union have a key in common, its choices (or else its defaults) are those of all; the docstring is the first one's.
    """
    lines: dict[str, Described] = {}
    for name, info in cls.model_fields.items():
        inside = sections(info.annotation)
        listed = _is_list(info.annotation)
        if listed or not inside:
            default = None if info.is_required() else _written(info.get_default(call_default_factory=True))
            lines[name] = Described(name, _type_text(info), default, info.description or "")
        for each in (below for section in inside for below in describe(section)):
            key = f"{name}.{ITEM}.{each.key}" if listed else f"{name}.{each.key}"
            first = lines.setdefault(key, Described(key, each.type, each.default, each.doc))
            lines[key] = _of_both(first, each)
    return list(lines.values())


def _of_both(first: Described, other: Described) -> Described:
    """A key of two sections of a union as one setting."""
    if first.type.startswith(CHOICES) and other.type.startswith(CHOICES):
        words = [word for each in (first, other) for word in each.type.removeprefix(CHOICES).split(", ")]
        return replace(first, type=CHOICES + ", ".join(dict.fromkeys(words)))
    if first.default is None or other.default is None or other.default in first.default.split(" or "):
        return first
    return replace(first, default=f"{first.default} or {other.default}")


def _is_list(annotation: Any) -> bool:
    """True for a list or tuple, and for a union that has one."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return any(_is_list(inner) for inner in get_args(annotation))
    return origin in (list, tuple, Sequence)


def _written(value: Any) -> str:
    """A default as YAML."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    plain = value if isinstance(value, bool | int | float | dict) or value is None else str(value)
    return yaml_text.dump_value(plain)


def _type_text(info: FieldInfo) -> str:
    """A field's type in words, with its limits."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in info.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None and abs(getattr(limit, name)) < 2**31
    ]
    return " ".join([_words(info.annotation), " and ".join(limits)]).strip()


def _words(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return CHOICES + ", ".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inner)
    if origin in (list, tuple, Sequence):
        return "list of " + ("sections" if sections(inner[0]) else _words(inner[0]))
    if origin in (dict, Mapping):
        return f"{_words(inner[0])} to {_words(inner[1])}"
    if sections(annotation):
        return "section"
    names = {str: "text", bool: "true or false", Path: "path", types.NoneType: "null"}
    return str(names.get(annotation) or getattr(annotation, "__name__", annotation))
