"""Strict typed settings: every mistake at once, each with its file, key and cure.

A part of Trivium that can be configured declares a `Settings` class beside itself; a recipe is a `Settings` class whose
fields are such parts. A docstring under each field is its explanation in the code, in `--help` and in the saved recipe.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )
