"""Runs side by side: what each learned, forgot and cost; as a table, and as a page with their ledgers in one plot.

What is laid side by side is what `report/run_data.py` reads of each run; a figure that a run does not have stays empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.progress import short_bytes, short_number
from trivium.report import ledger, markup, units
from trivium.report.page import page
from trivium.report.plots import FIRST, INK, MUTED, SECOND, Trail, trail_plot
from trivium.report.run_data import RunData, number, part, read_run, words
from trivium.report.verdict import bits_per_byte, final_loss, state, steps_done

COLORS = (FIRST, SECOND, INK, MUTED)


def compare(directories: Sequence[str | Path]) -> dict[str, Any]:
    """{"runs": [figures of each]}. UserError for a directory that is no run."""
    if not directories:
        raise UserError("name at least one run directory to compare")
    return {"runs": [figures(read_run(Path(directory))) for directory in directories]}


def figures(run: RunData) -> dict[str, Any]:
    """What is compared of one run."""
    facts, peft = part(run.summary, "ledger"), part(run.recipe, "peft")
    return {
        "run": str(run.directory),
        "state": state(run),
        "stage": words(run.recipe, "stage", 40) or "pretrain",
        "task": words(run.summary, "task", 40) or None,
        "method": words(peft, "method", 40) or None,
        "base": words(run.recipe, "base", 40) or None,
        "num_parameters": number(run.summary, "num_parameters"),
        "num_trainable_parameters": number(run.summary, "num_trainable_parameters"),
        "steps": steps_done(run),
        "final_loss": final_loss(run),
        "bits_per_byte": bits_per_byte(run),
        "before": {key: then for key, _, then, _, _ in ledger.measured(run)},
        "after": {key: now for key, _, _, now, _ in ledger.measured(run)},
        "general": {
            "measure": words(facts, "measure", 60) or None,
            "before": number(facts, "before"),
            "after": number(facts, "after"),
            "lost": number(facts, "lost"),
        },
        "tokens_per_second": number(run.summary, "tokens_per_second"),
        "peak_bytes": number(run.summary, "peak_bytes"),
        "seconds": number(run.summary, "seconds"),
    }


def comparison_table(found: dict[str, Any]) -> str:
    """The same for people: one column a run, the rows that at least one run has."""
    runs = found["runs"]
    rows: list[list[str]] = [["run", *(Path(run["run"]).name for run in runs)]]
    for label, shown in _rows(runs):
        if any(shown):
            rows.append([label, *shown])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _rows(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    def line(label: str, key: str, show: Any) -> tuple[str, list[str]]:
        return label, ["" if run.get(key) is None else show(run[key]) for run in runs]

    lines = [
        line("state", "state", str),
        line("task", "task", str),
        line("method", "method", str),
        line("base", "base", str),
        line("trained", "num_trainable_parameters", short_number),
        line("steps", "steps", lambda steps: f"{steps:,}"),
        line("training loss", "final_loss", units.figure),
        line("bits per byte", "bits_per_byte", units.figure),
    ]
    for key, title, _ in ledger.SCORES:
        pairs = [(run["before"].get(key), run["after"].get(key)) for run in runs]
        lines.append((f"{title}", ["" if now is None else f"{_figure(then)} -> {_figure(now)}" for then, now in pairs]))
    general = [run["general"] for run in runs]
    lines.append(
        (
            "general text lost",
            ["" if each["lost"] is None else f"{each['lost']:+.4g} {_unit(each['measure'])}" for each in general],
        )
    )
    return [
        *lines,
        line("tokens/s", "tokens_per_second", short_number),
        line("peak memory", "peak_bytes", short_bytes),
        line("time", "seconds", units.duration),
    ]


def _figure(value: float | None) -> str:
    return "?" if value is None else units.figure(value)


def _unit(measure: str | None) -> str:
    return "bits/byte" if measure == "general_bits_per_byte" else "nats/token"


def write_comparison(directories: Sequence[str | Path], target: Path) -> None:
    """One page: the table, and the ledgers of all runs in one plot."""
    runs = [read_run(Path(directory)) for directory in directories]
    found = compare(directories)
    names = [markup.text(Path(run["run"]).name) for run in found["runs"]]
    lines = [(label, shown) for label, shown in _rows(found["runs"]) if any(shown)]
    head = "".join(f"<th>{name}</th>" for name in ("", *names))
    body = "\n".join(
        f"<tr><th>{markup.text(label)}</th>{''.join(f'<td>{markup.text(cell)}</td>' for cell in shown)}</tr>"
        for label, shown in lines
    )
    pieces = [
        markup.section("Runs side by side", f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>')
    ]
    colors = itertools.cycle(COLORS)
    trails = [
        Trail(run.directory.resolve().name, tuple(points), next(colors))
        for run in runs
        if len(points := ledger.points(part(run.summary, "ledger"))) > 1
    ]
    if trails:
        svg = trail_plot(
            trails,
            name="ledgers",
            across="held-out loss of the task, nats",
            up="general text (bits or nats)",
            wide=True,
        )
        caption = "Left is better at the task, down is better at the rest; hollow points are where runs began."
        pieces.append(markup.section("Gained against lost", markup.plot("All runs", svg, caption)))
    title = f"{len(runs)} runs compared"
    write_atomically(target, page(title, f"<header>\n<h1>{title}</h1>\n</header>\n" + "\n".join(pieces)))
