"""Settings as options of verbs; their help quotes the settings' docstrings, so each is explained in one place only."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, TypeVar

import typer

from trivium.config import Settings, build_settings, describe

S = TypeVar("S", bound=Settings)


def help_of(cls: type[Settings], name: str) -> Any:
    """An option explained by the docstring of the setting it sets."""
    return typer.Option(help=" ".join((cls.model_fields[name].description or "").split()))


def settings_of(cls: type[S], options: Mapping[str, Any], verb: str) -> S:
    """The settings among a verb's options, by name; what the user left out (None) is as the settings say."""
    given = {name: options[name] for name in cls.model_fields if options.get(name) not in (None, [])}
    return build_settings(cls, given, verb)


def settings_help(cls: type[Settings]) -> str:
    """Every setting of a recipe with its type, default and docstring."""
    lines = ["", "Settings (in the recipe, or as key=value after it):", ""]
    for setting in describe(cls):
        default = "must be given" if setting.default is None else f"default {setting.default}"
        lines.append(f"  {setting.key}  ({setting.type}; {default})")
        lines += textwrap.wrap(" ".join(setting.doc.split()), 98, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"
