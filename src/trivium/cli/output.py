"""How every verb speaks: the result on stdout, everything else on stderr; with `--json` exactly one JSON
object."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any

import typer

from trivium.progress import SILENT, Progress, TerminalProgress, short_bytes
from trivium.runtime import world_from_environment

JsonFlag = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout, everything else to stderr.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU where there is one.")]


def new_app(**settings: Any) -> typer.Typer:
    """A typer app as all verbs use it: plain help, no completion machinery, errors left to `trivium.cli.main`."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
        **settings,
    )


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
            from trivium.config import plain

            self._stdout.write(json.dumps(plain(values), ensure_ascii=False, allow_nan=False) + "\n")
        else:
            self.write(table(values) if text is None else text.rstrip("\n") + "\n")


def table(values: Mapping[str, Any]) -> str:
    """Names and plain values in two columns; what is nested is left to `--json`."""
    rows = {name.replace("_", " "): value for name, value in values.items() if not _is_nested(value)}
    width = max(map(len, rows), default=0) + 2
    return "".join(f"{name:<{width}}{_shown(value)}\n" for name, value in rows.items())


def run_table(summary: Mapping[str, Any]) -> str:
    """What a person wants to know first of a finished run."""
    rows = {
        "held out": _held_out(summary.get("held_out") or {}),
        **{name: summary[name] for name in ("steps", "final_loss", "tokens_per_second") if name in summary},
        **{
            name.removesuffix("_bytes"): short_bytes(summary[name])
            for name in ("peak_bytes", "planned_peak_bytes")
            if summary.get(name) is not None
        },
        **{name: summary[name] for name in ("run", "model", "report") if name in summary},
    }
    return table(rows)


def _held_out(held_out: Mapping[str, Any]) -> str:
    """The figure a kind of model is judged by."""
    if "bits_per_byte" in held_out:
        return f"{held_out['bits_per_byte']:.4f} bits per byte"
    for what, words in (("masked", "masks filled rightly"), ("target", "target tokens predicted rightly")):
        if f"{what}_accuracy" in held_out:
            text = f"{100 * held_out[f'{what}_accuracy']:.1f} % of {words}"
            scores = [f"{key.replace('_', ' ')} {held_out[key]:.3g}" for key in held_out if key.endswith("_beam")]
            return ", ".join([text, *scores])
    return "nothing was held out"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or dataclasses.is_dataclass(value)


def _shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
