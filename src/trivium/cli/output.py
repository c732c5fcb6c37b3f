"""How every verb speaks: the result on stdout, everything else on stderr; with `--json` exactly one JSON
object."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from trivium.config import Settings, describe
from trivium.progress import SILENT, Progress, TerminalProgress
from trivium.runtime import world_from_environment

JsonFlag = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout, everything else to stderr.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def new_app(**settings: Any) -> typer.Typer:
    """A typer app as all verbs use it: plain help, no completion machinery, errors left to
    `trivium.cli.main`."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
        **settings,
    )


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


class Output(contextlib.AbstractContextManager["Output"]):
    """While open with `as_json`, stdout belongs to the result: what libraries print goes to stderr."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        rank, _ = world_from_environment()
        self.is_main = rank == 0
        self.as_json = as_json
        self.progress: Progress = SILENT if quiet or not self.is_main else TerminalProgress()
        self._stdout = sys.stdout
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Output:
        self._stdout = sys.stdout
        if self.as_json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.finish()
        self._stack.close()

    def write(self, text: str) -> None:
        """Text for people: on stdout, or nowhere with `--json`. Flushed, so that it can be watched."""
        if not self.as_json and self.is_main:
            self._stdout.write(text)
            self._stdout.flush()

    def result(self, values: Mapping[str, Any], text: str | None = None) -> None:
        """The verb's result: JSON with `--json`, else `text` (by default the values, one per line)."""
        if not self.is_main:
            return
        if self.as_json:
            self._stdout.write(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n")
        else:
            self.write(table(values) if text is None else text.rstrip("\n") + "\n")


def table(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    width = max((len(name) for name in values), default=0) + 2
    return "".join(f"{name.replace('_', ' '):<{width}}{_shown(value)}\n" for name, value in values.items())


def _shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: paths as text, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
