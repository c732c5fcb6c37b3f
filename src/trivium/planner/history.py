"""What was planned and what was measured, of every run on this machine: so that a plan's error is known, not hoped.

Each run that states a plan leaves one line of JSON in `history.jsonl` in the user's data directory (`TRIVIUM_HOME`,
else `$XDG_DATA_HOME/trivium`, else `~/.local/share/trivium`). A line is one write at the end of the file, so processes
that write at once do not mix. A file that has grown to `LARGEST_BYTES` becomes `history.old.jsonl` and a new one
begins: two files of bounded size, of which the newest lines are never lost. Nothing here fails a run: where nothing
can be written, that is a note.

Invariants its test checks: many processes writing at once, and past the limit, leave whole lines only; damaged lines
are left out and counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

from trivium.progress import SILENT, Progress, short_bytes, short_number

LARGEST_BYTES = 1 << 20
LONGEST_LINE = 4096
LONGEST_NAME = 200
# Runs shown to people; the figures are those of all.
SHOWN_RUNS = 40


@dataclass(frozen=True)
class PlannedRun:
    """One run: what it was, the memory planned before it and the memory measured after it."""

    stage: str
    """pretrain, classify, generate, ...: the verb."""
    model: str
    """How the user named it, or the run's directory."""
    kind: str
    """decoder, encoder or encoder-decoder."""
    parameters: int
    precision: str
    """fp32, bf16, ..., or the format of quantized weights."""
    device: str
    rows: int
    """Texts, or rows of a micro-batch, that are computed together."""
    length: int
    """Positions of each."""
    planned_bytes: int
    peak_bytes: int
    time: str = ""
    """When it ended, in UTC (filled in by `record_run`)."""

    @property
    def error(self) -> float:
        """(planned - measured) / measured: 0.05 is a plan 5 % too high."""
        return self.planned_bytes / self.peak_bytes - 1


class HistoryReport(TypedDict):
    """All runs of the history, oldest first, and how far their plans were off."""

    path: str
    runs: list[dict[str, Any]]
    """The fields of `PlannedRun` and `error`."""
    median_error: float | None
    """Median of the absolute errors; None without runs."""
    worst_error: float | None
    """The largest absolute error."""
    damaged: int
    """Lines that could not be read."""


def data_directory() -> Path:
    """Where Trivium keeps what outlives a run."""
    home = os.environ.get("TRIVIUM_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "trivium"


def history_path() -> Path:
    """The file that new runs are added to."""
    return data_directory() / "history.jsonl"


def record_run(run: PlannedRun, progress: Progress = SILENT) -> None:
    """Add a run to the history; a note where that cannot be done."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    values = {**asdict(run), "model": run.model[-LONGEST_NAME:], "time": run.time or stamp}
    line = json.dumps(values).encode() + b"\n"  # ASCII: what a path holds that is no UTF-8 is escaped
    if len(line) > LONGEST_LINE:
        return
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
            if os.fstat(descriptor).st_size > LARGEST_BYTES:
                _set_aside(descriptor, path)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        progress.note(f"planned and measured memory could not be added to {path.name}: {error}")


def _set_aside(descriptor: int, path: Path) -> None:
    """Let a new file begin. Of several processes one does it; the others find the file gone from its name."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            path.replace(_old(path))


def _old(path: Path) -> Path:
    return path.with_name("history.old.jsonl")


def read_history() -> tuple[list[PlannedRun], int]:
    """(the runs, oldest first; how many lines were damaged). Empty where there is no history."""
    runs: list[PlannedRun] = []
    damaged = 0
    for path in (_old(history_path()), history_path()):
        try:
            with path.open("rb") as file:
                lines = file.read(2 * LARGEST_BYTES).splitlines()
        except OSError:
            continue
        for line in lines:
            run = _run_of(line)
            if run is None:
                damaged += 1
            else:
                runs.append(run)
    return runs, damaged


def _run_of(line: bytes) -> PlannedRun | None:
    """The run that a line holds; None when it is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kinds: dict[str, type] = {field.name: int if field.type == "int" else str for field in fields(PlannedRun)}
    if not isinstance(values, dict) or any(type(values.get(name)) is not kind for name, kind in kinds.items()):
        return None
    run = PlannedRun(**{name: values[name] for name in kinds})
    return run if 0 < run.peak_bytes < 1 << 60 and 0 < run.planned_bytes < 1 << 60 else None


def history_report() -> HistoryReport:
    """The history with its errors: what `trivium plan --history --json` writes."""
    import statistics  # only where it is needed: a run that is recorded does not wait for it

    runs, damaged = read_history()
    errors = [abs(run.error) for run in runs]
    return {
        "path": str(history_path()),
        "runs": [{**asdict(run), "error": run.error} for run in runs],
        "median_error": statistics.median(errors) if errors else None,
        "worst_error": max(errors, default=None),
        "damaged": damaged,
    }


def history_table(report: HistoryReport) -> str:
    """The newest runs as a table, and the median and the worst error of all."""
    runs = report["runs"]
    if report["median_error"] is None or report["worst_error"] is None:
        return f"no run has been planned and measured yet (they are kept in {report['path']})\n"
    head = ("time (UTC)", "stage", "model", "parameters", "precision", "rows x length", "planned", "measured", "error")
    lines = [head, *(_cells(run) for run in runs[-SHOWN_RUNS:])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = "".join(_line(line, widths) for line in lines)
    if len(runs) > SHOWN_RUNS:
        text = f"the newest {SHOWN_RUNS} of {len(runs)} runs\n{text}"
    text += (
        f"\n{len(runs)} runs: the plan is off by {report['median_error']:.1%} in the median, "
        f"{report['worst_error']:.1%} at worst\n"
    )
    return text + (f"{report['damaged']} damaged lines were left out\n" if report["damaged"] else "")


def _cells(run: dict[str, Any]) -> tuple[str, ...]:
    model = run["model"] if len(run["model"]) <= 32 else "..." + run["model"][-29:]
    return (
        run["time"][:16].replace("T", " "),
        run["stage"],
        model.encode("ascii", "replace").decode(),
        short_number(run["parameters"]),
        run["precision"],
        f"{run['rows']} x {run['length']}",
        short_bytes(run["planned_bytes"]),
        short_bytes(run["peak_bytes"]),
        f"{run['error']:+.1%}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    shown = [
        f"{cell:<{w}}" if column < 3 else f"{cell:>{w}}"
        for column, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(shown).rstrip() + "\n"
