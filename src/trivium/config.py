"""Strict typed settings: every mistake at once, each with its file, key and cure.

A part of Trivium that can be configured declares a `Settings` class beside itself; a recipe is a `Settings`
class whose fields are such parts. A docstring under each field is its explanation in the code, in `--help`
and in the saved recipe. Paths in a recipe are relative to the current directory, as on a command line.

Invariants (tested): `load_recipe(dump_recipe(x)) == x`; no key is ever ignored; whatever the bytes of a
recipe, the outcome is settings or a `UserError`. Left out: a check across fields (a validator of the class)
runs only once each field of its section is right by itself, so its complaint may come in a second round. For
editors, `cls.model_json_schema()` has each docstring as a description.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from trivium import yaml_text
from trivium.config_mistakes import by_key, explain
from trivium.config_schema import Described, describe, fields_at, leaves, tag_at
from trivium.errors import UserError, nearest
from trivium.yaml_text import Place, dotted

__all__ = [
    "Described",
    "Settings",
    "build_settings",
    "chosen_by",
    "describe",
    "dump_recipe",
    "load_recipe",
    "plain",
    "tag_of",
]

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown keys, finite numbers, a docstring under each field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read `true` as the number 1."""
        if isinstance(value, bool) and info.field_name is not None:
            types = set(leaves(cls.model_fields[info.field_name].annotation))
            if types & {int, float} and not types & {bool, Any}:
                raise ValueError("must be a number")
        return value


def chosen_by(key: str, names: Sequence[str], default: str | None = None) -> Callable[[Any], Any]:
    """For sections told apart by `key`: a name alone is the section of that name with its defaults, a section without
    one is the `default`; an unknown name is refused with the nearest right one."""

    def named(value: Any) -> Any:
        if isinstance(value, str):
            value = {key: value}
        if isinstance(value, Mapping):
            value = value if default is None else {key: default, **value}
            name = value.get(key)
            if name not in names:
                near = nearest(str(name), names)
                hint = f"; did you mean {near}?" if near else ""
                raise ValueError(f"{key} must be one of {', '.join(names)}{hint}")
        return value

    return named


def tag_of(key: str) -> Callable[[Any], Any]:
    """Which of such sections a value is."""
    return lambda value: value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def load_recipe(cls: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML recipe, apply `a.b=c` overrides, check all. Raises `UserError` that lists every mistake."""
    try:
        parsed = yaml_text.parse(_read(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    values = {} if parsed.value is None else parsed.value
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is made of `key: value` lines, and this file is not")
    written = {place: f"{path}:{line}" for place, line in parsed.lines.items()}
    mistakes = [": ".join(filter(None, (f"{path}:{line}", key, wrong))) for line, key, wrong in parsed.mistakes]
    return _build(cls, _Draft(values, str(path), written, mistakes), overrides)


def build_settings(cls: type[S], values: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> S:
    """The same checks on a mapping; `origin` names it in the message."""
    return _build(cls, _Draft(_copy(values), origin), overrides)


def _read(path: Path) -> str:
    """The text of a recipe, of bounded size."""
    try:
        with path.open("rb") as file:
            data = file.read(yaml_text.MAX_BYTES + 1)
        return data.decode("utf-8")
    except FileNotFoundError:
        near = nearest(path.name, (other.name for other in path.parent.glob("*.y*ml")))
        cure = f"did you mean {path.parent / near}?" if near else "give the path of a YAML file"
        raise UserError(f"there is no such recipe; {cure}") from None
    except IsADirectoryError:
        raise UserError("this is a folder; give the path of a recipe (a YAML file)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start}); is this a recipe?") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None


def _copy(value: Any) -> Any:
    """A deep copy with plain dicts and lists, so that overrides never write into the caller's object."""
    if isinstance(value, Mapping):
        return {str(key): _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class _Draft:
    """Values on their way to being settings."""

    values: dict[str, Any]
    origin: str
    written: dict[Place, str] = field(default_factory=dict)
    """Where each key was written: `recipe.yaml:12`, or the override."""
    mistakes: list[str] = field(default_factory=list)

    def complain(self, place: Place, wrong: str) -> None:
        """Note a mistake, naming where the longest known part of `place` was written."""
        above = (place[:length] for length in range(len(place), 0, -1))
        where = next((self.written[part] for part in above if part in self.written), self.origin)
        self.mistakes.append(f"{where}: {dotted(place)}: {wrong}" if place else f"{where}: {wrong}")


def _build(cls: type[S], draft: _Draft, overrides: Sequence[str]) -> S:
    """Overrides, then validation; one `UserError` with all that is wrong."""
    for override in overrides:
        shown = override if len(override) <= 80 else override[:77] + "..."
        try:
            _override(cls, draft, override, f"override {shown}")
        except UserError as error:
            draft.mistakes.append(f"override {shown}: {error}")
    settings: S | None = None
    try:
        settings = cls.model_validate(draft.values)
    except ValidationError as error:
        for place, errors in by_key(draft.values, error.errors(include_url=False)).items():
            draft.complain(place, explain(cls, place, errors))
    if draft.mistakes or settings is None:
        raise UserError("\n".join(dict.fromkeys(draft.mistakes)))
    return settings


def _override(cls: type[Settings], draft: _Draft, override: str, where: str) -> None:
    """Write `a.b=c` into the draft. `c` is YAML (`[1, 2]`, `null`, `1e-4`, text); in a key `-` means `_`."""
    name, equals, text = override.lstrip("-").partition("=")
    if not equals or not name:
        known = nearest(name.replace("-", "_"), (setting.key for setting in describe(cls)))
        raise UserError(f"write it as key=value, for example {known or describe(cls)[0].key}=...")
    parsed = yaml_text.parse(text)
    if parsed.mistakes:
        raise UserError("; ".join(wrong for _, _, wrong in parsed.mistakes))
    place: Place = ()
    target: Any = draft.values
    parts = name.strip().split(".")
    for part in parts[:-1]:
        place = (*place, _key(cls, place, target, part))
        below = target.get(place[-1]) if isinstance(target, dict) else target[place[-1]]
        if below is None:
            below = target[place[-1]] = {}
            draft.written[place] = where
        if isinstance(below, str) and (tag := tag_at(cls, place, below)):  # a name alone, of one of several sections
            below = target[place[-1]] = {tag: below}
        if not isinstance(below, dict | list):
            raise UserError(f"{dotted(place)} is {below!r}, not a section")
        target = below
    place = (*place, _key(cls, place, target, parts[-1]))
    target[place[-1]] = parsed.value
    draft.written = {p: w for p, w in draft.written.items() if p[: len(place)] != place} | {place: where}


def _key(cls: type[Settings], place: Place, target: Any, part: str) -> str | int:
    """One word of a dotted key as it stands in the draft: an index into a list, or a name with its `_`."""
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            raise UserError(f"{dotted(place)} is a list of {len(target)}; name an item by 0, 1, ...")
        return int(part)
    known = fields_at(cls, place)
    underscored = part.replace("-", "_")
    return underscored if part not in known and underscored in known else part


def dump_recipe(settings: Settings, comments: bool = True) -> str:
    """The settings as YAML that `load_recipe` reads back to an equal object; docstrings as comments above."""
    return "\n".join(_dumped(settings, settings.model_dump(mode="json"), comments)) + "\n"


def _dumped(settings: Settings, plain: dict[str, Any], comments: bool) -> list[str]:
    """The lines of one section."""
    lines: list[str] = []
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if comments and info.description:
            words = " ".join(info.description.split())
            lines += [f"# {line}" for line in textwrap.wrap(words, 100, break_on_hyphens=False)]
        if isinstance(value, Settings):
            body = _dumped(value, plain[name], comments)
            lines += [f"{name}:", *(f"  {line}" for line in body)] if body else [f"{name}: {{}}"]
        elif isinstance(value, list | tuple) and any(isinstance(item, Settings) for item in value):
            lines.append(f"{name}:")
            for item, item_plain in zip(value, plain[name], strict=True):
                lines += _dumped_item(item, item_plain)
        else:
            lines.append(f"{name}: {yaml_text.dump_value(plain[name])}")
    return lines


def _dumped_item(item: Any, plain: Any) -> list[str]:
    """The lines of one list item; without comments, which would repeat for each."""
    if not isinstance(item, Settings):
        return [f"  - {yaml_text.dump_value(plain)}"]
    first, *rest = _dumped(item, plain, comments=False) or ["{}"]
    return [f"  - {first}", *(f"    {line}" for line in rest)]


def plain(value: Any) -> Any:
    """What JSON can hold: settings and dataclasses as objects, paths as text, numbers that are not finite as null."""
    if isinstance(value, BaseModel):
        return plain({name: getattr(value, name) for name in type(value).model_fields})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
