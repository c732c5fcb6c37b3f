"""How long work says how far it is: a tiny protocol, a silent default, and a reporter for the terminal.

Whoever does long work takes `progress: Progress = SILENT` and calls `start`, `advance`, `note`, `finish`;
nobody below the command line knows whether anyone is looking. All of it goes to stderr, as stdout holds
results only. Invariant (tested): no call ever raises, and nothing is ever written to stdout.
"""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What long work reports to. One task at a time: `start` ends the task before it."""

    def start(self, description: str, total: int | None = None, unit: str = "") -> None:
        """A new task of `total` units begins (None: the total is not known)."""
        ...

    def advance(self, amount: int = 1) -> None:
        """`amount` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Say one line that stays on the screen."""
        ...

    def finish(self) -> None:
        """The task is over (harmless when none is running)."""
        ...


class Silent:
    """Reports nothing: the default everywhere."""

    def start(self, description: str, total: int | None = None, unit: str = "") -> None:
        """Do nothing."""

    def advance(self, amount: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT = Silent()


def short_number(value: float) -> str:
    """A count in at most five characters: 950, 12.3k, 4.56M, 7.89G."""
    for divisor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= divisor * 0.9995:
            scaled = value / divisor
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{letter}"
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}"


def short_bytes(value: float) -> str:
    """A size in units of a thousand, wherever one is said: 950 B, 12.3 kB, 687 MB, 7.89 GB."""
    short = short_number(value)
    return f"{short[:-1]} {short[-1]}B" if short[-1].isalpha() else f"{short} B"


def amount(value: float, unit: str) -> str:
    """So much of something: 12.3k tokens, 1 text, 29.0 kB (the unit `B`)."""
    if unit == "B":
        return short_bytes(value)
    return f"{short_number(value)} {unit.removesuffix('s') if value == 1 else unit}".rstrip()


def short_time(seconds: float) -> str:
    """A duration as a person says it: 8s, 3m 20s, 2h 05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


class TerminalProgress:
    """A bar on a terminal; elsewhere (a file, a log) a plain line at most every `seconds_between_lines`."""

    def __init__(self, stream: IO[str] | None = None, seconds_between_lines: float = 10.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._interval = seconds_between_lines
        self._is_terminal = self._stream.isatty()
        self._console: Console | None = None
        self._bar: RichProgress | None = None
        self._running = False
        self._description, self._unit = "", ""
        self._total: int | None = None
        self._done = 0
        self._started = self._last_line = 0.0

    def start(self, description: str, total: int | None = None, unit: str = "") -> None:
        """Begin a task; a task still running is finished first."""
        self.finish()
        self._description, self._total, self._unit = description, total, unit
        self._done, self._running = 0, True
        self._started = self._last_line = time.monotonic()
        if self._is_terminal:
            self._bar = self._new_bar()
            self._bar.add_task(description, total=total, state="")
            self._bar.start()
        else:
            self._write(f"{description} ...")

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units; a call outside a task is ignored."""
        if not self._running:
            return
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, state=self._state())
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            self._write(f"{self._description}: {self._state()}")

    def note(self, text: str) -> None:
        """Write one line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def finish(self) -> None:
        """End the task, leaving one line that says what was done and how long it took."""
        if not self._running:
            return
        self._running = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        done = f"{amount(self._done, self._unit)}, " if self._done else ""
        self._write(f"{self._description}: {done}{short_time(time.monotonic() - self._started)}")

    def _state(self) -> str:
        """`1.20M/4.00M tokens, 52.1k/s, 54s left`, as far as these are known."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed
        shown = short_bytes if self._unit == "B" else short_number
        done = amount(self._done, self._unit)
        if self._total is not None:
            done = f"{shown(self._done)}/{amount(self._total, self._unit)}"
        parts = [done, f"{shown(rate)}/s"]
        if self._total is not None and self._done:
            parts.append(f"{short_time((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _new_bar(self) -> RichProgress:
        """A rich bar that vanishes when it is done (`finish` leaves its own line)."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._console is None:
            self._console = Console(file=self._stream)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30))
        state = TextColumn("{task.fields[state]}", markup=False)
        return Progress(*columns, state, console=self._console, transient=True)

    def _write(self, text: str) -> None:
        """One line on the stream; a reader that has gone away is no reason to stop working."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return
