"""Help that quotes the docstrings of settings, so that each is explained in one place only."""

from __future__ import annotations

import textwrap
from typing import Any

import typer

from trivium.config import Settings, describe


def help_of(cls: type[Settings], name: str) -> Any:
    """An option explained by the docstring of the setting it sets."""
    return typer.Option(help=" ".join((cls.model_fields[name].description or "").split()))


def settings_help(cls: type[Settings]) -> str:
    """Every setting of a recipe with its type, default and docstring."""
    lines = ["", "Settings (in the recipe, or as key=value after it):", ""]
    for setting in describe(cls):
        default = "must be given" if setting.default is None else f"default {setting.default}"
        lines.append(f"  {setting.key}  ({setting.type}; {default})")
        lines += textwrap.wrap(" ".join(setting.doc.split()), 98, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"
