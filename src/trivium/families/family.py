"""What a family must tell: how its config.json and the names of its weights correspond to ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.models.config import ModelConfig

# Characters of a file's content repeated in a message.
SHOWN = 80


def shown(value: object) -> str:
    """A value from a file of unknown origin, fit to be shown: one line, of bounded length, as JSON would write it."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


@dataclass(frozen=True)
class Family:
    """One published family."""

    model_type: str
    """The `model_type` in its config.json, by which it is recognised."""
    architecture: str
    """The class of `transformers` that its language models belong to."""
    read_config: Callable[[Mapping[str, Any], str], ModelConfig]
    """(config.json as a mapping, where it came from) -> our config; UserError for what we would compute otherwise."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Our config -> what config.json says about the shape; the config has no `obstacles`."""
    obstacles: Callable[[ModelConfig], list[str]]
    """What would have to change for a config to be one of the family ("norm must be rmsnorm"); empty: nothing."""
    to_published: Callable[[str], str]
    """Our parameter name -> the published name; KeyError for a name that is not ours."""
    is_redundant: Callable[[str], bool]
    """Whether a published tensor holds nothing that does not follow from the config (such as a table of angles)."""
