"""The section about the model in fewer bits, where a run has measured what that costs (`compression` of its summary).

What is shown was computed by `report/compression.py`; here nothing of it is trusted, and what is missing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from trivium.progress import short_bytes
from trivium.report import markup
from trivium.report.plots import Bar, bar_plot
from trivium.report.run_data import Facts, RunData, number, part, words

MOST_ROWS, MOST_PARTS = 30, 12
# What a part of a model may be called.
NAME = re.compile(r"[\w. \-]{1,60}", re.ASCII)


def section(run: RunData) -> str:
    """Size, speed, quality and the errors of the parts of the quantized model; empty where there is none."""
    cost = part(run.summary, "compression")
    if not cost:
        return ""
    name = words(part(cost, "scheme"), "format", 40) or "fewer bits"
    pieces = [_pair(part(cost, "bytes"), name, "Size in memory", "size", short_bytes)]
    speeds = part(cost, "speed")
    pieces += [
        _pair(part(speeds, what), name, f"Speed of {what}", what, lambda value: f"{value:,.0f} tokens/s")
        for what in ("reading", "writing")
    ]
    pieces.append(_errors(part(cost, "parts")))
    table = _table(cost.get("table"), name)
    return markup.section(
        f"The model in fewer bits ({name})", markup.columns([piece for piece in pieces if piece]), table
    )


def _pair(facts: Facts, name: str, title: str, key: str, show: Callable[[float], str]) -> str:
    """Two bars: the original and the quantized model."""
    before, after = number(facts, "original"), number(facts, "quantized")
    if not before or not after:
        return ""
    bars = [Bar("original", before, show(before)), Bar(name, after, show(after), ours=True)]
    caption = f"{after / before:.2f} times the original."
    return markup.plot(title, bar_plot(bars, name=f"fewer-bits-{key}"), caption)


def _errors(parts: Facts) -> str:
    """The parts of the model whose results differ most."""
    named = {name: value for name in parts if NAME.fullmatch(name) and (value := number(parts, name)) is not None}
    found = [(name, value) for name, value in named.items() if value >= 0]
    if not found:
        return ""
    found.sort(key=lambda item: -item[1])
    bars = [Bar(name, value, f"{100 * value:.2f} %", ours=True) for name, value in found[:MOST_PARTS]]
    caption = f"Relative error of what a part computes; the {len(bars)} largest of {len(found)}."
    return markup.plot("Error by part", bar_plot(bars, name="fewer-bits-errors"), caption)


def _table(rows: object, name: str) -> str:
    """The measured figures: what, of the original, of the quantized model."""
    if not isinstance(rows, list):
        return ""
    lines = []
    for row in rows[:MOST_ROWS]:
        if isinstance(row, list) and len(row) == 3 and all(isinstance(cell, str) for cell in row):
            what, before, after = (words({"cell": cell}, "cell", markup.MAX_CELL_CHARACTERS) for cell in row)
            lines.append((what, f"{before} \N{RIGHTWARDS ARROW} {after}" if before else after))
    title = f"Original \N{RIGHTWARDS ARROW} {name}, measured on held-out text"
    return markup.block(title, markup.table(lines)) if lines else ""
