"""The words of the command line, as the verbs' modules declare them."""

from __future__ import annotations

import importlib

from trivium.cli import VERBS


def subverbs(verb: str) -> list[str]:
    """The second words of a verb; none when it is a command by itself."""
    app = importlib.import_module(f"trivium.cli.{verb.replace('-', '_')}").app
    names = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    return names if len(names) > 1 or app.registered_callback else []


def lines() -> list[tuple[str, ...]]:
    """Every line of words that takes `--help`."""
    return [(), *((verb,) for verb in VERBS), *((verb, name) for verb in VERBS for name in subverbs(verb))]
