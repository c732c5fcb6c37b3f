"""The page's plots: matplotlib draws them as SVG, and the page's style sheet colours them.

Each plot is drawn in placeholder colours which are then replaced by CSS variables, so that one drawing serves light,
dark and paper; text stays text in the page's own font, which keeps a plot at a few kilobytes. Curves are thinned to
`MAX_POINTS` by keeping the lowest and the highest point of every stretch, so that no spike is lost.

The invariants its tests check: the same numbers give the same bytes; a spike survives thinning; labels are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from trivium.report import units
from trivium.report.run_data import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000

# Placeholders in the drawing -> variables of `style.py`. The values only have to differ from each other.
INK, MUTED, FIRST, SECOND, RULE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "ink", MUTED: "muted", FIRST: "first", SECOND: "second", RULE: "rule"}

# Sizes in inches of 72 CSS pixels' worth of SVG units: one column of the page, the whole page.
COLUMN = (5.2, 2.7)
WIDE = (10.6, 3.6)

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    curve: Curve
    label: str
    color: str = FIRST
    marked: bool = False
    """Draw each point as a dot (for curves of few points)."""
    smoothed: bool = False
    """Draw the raw values faintly under their running mean."""


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: a value, and what it is made of when `parts` is given (they add up to it)."""

    label: str
    value: float
    text: str
    parts: tuple[float, ...] = ()
    ours: bool = False


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points of a curve: of each stretch of steps its lowest and its highest."""
    points = len(curve.steps)
    if points <= limit:
        return curve
    stretches = limit // 2
    keep: list[int] = []
    for index in range(stretches):
        stretch = range(index * points // stretches, (index + 1) * points // stretches)
        lowest = min(stretch, key=curve.values.__getitem__)
        highest = max(stretch, key=curve.values.__getitem__)
        keep.extend(sorted({lowest, highest}))
    return Curve(tuple(curve.steps[i] for i in keep), tuple(curve.values[i] for i in keep))


def smooth(curve: Curve, share: float = 1 / 40) -> Curve:
    """The running mean over a centred window of `share` of the points; it narrows at both ends, so it lags nowhere."""
    points = len(curve.values)
    half = max(1, int(points * share / 2))
    sums = [0.0, *accumulate(curve.values)]
    means = []
    for index in range(points):
        reach = min(half, index, points - 1 - index)
        means.append((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))
    return Curve(curve.steps, tuple(means))


def line_plot(lines: Sequence[Line], *, name: str, log: bool = False, wide: bool = False, last: float = 1) -> str:
    """SVG of curves over optimizer steps. `last`: the run's last step, so that all plots share an x axis."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, line)
        if log:
            _use_log_scale(axes)
        else:
            _leave_out_outliers(axes, lines)
            axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.set_xlim(0, max(last, 1, *(line.curve.steps[-1] for line in lines)))
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: units.count(value))
        if len(lines) > 1:
            axes.legend(frameon=False, loc="upper right", labelcolor=MUTED, handlelength=1.4)

    return _render(draw, name, WIDE if wide else COLUMN)


@dataclass(frozen=True)
class Trail:
    """Points in the order they were made, each joined to the next."""

    label: str
    points: tuple[tuple[float, float], ...]
    color: str = FIRST


def trail_plot(trails: Sequence[Trail], *, name: str, across: str, up: str, wide: bool = False) -> str:
    """SVG of trails in the plane; the first point of each is hollow, the last a filled one."""

    def draw(axes: Axes) -> None:
        for trail in trails:
            xs, ys = zip(*trail.points, strict=True)
            axes.plot(xs, ys, color=trail.color, label=trail.label, marker="o", markersize=3.5, linewidth=1.2)
            axes.plot(xs[:1], ys[:1], color=trail.color, marker="o", markersize=7, fillstyle="none", linestyle="")
            axes.plot(xs[-1:], ys[-1:], color=trail.color, marker="o", markersize=7, linestyle="")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        if len(trails) > 1:
            axes.legend(frameon=False, labelcolor=MUTED, handlelength=1.4)

    return _render(draw, name, WIDE if wide else COLUMN)


# What one character of the figure at a bar's end takes of a plot's width; longer ones than this are cut.
CHARACTER_SHARE, MOST_CHARACTERS = 0.019, 24


def bar_plot(bars: Sequence[Bar], *, name: str) -> str:
    """SVG of horizontal bars from zero, each with its label above and its figure at its end."""

    def draw(axes: Axes) -> None:
        largest = max(bar.value for bar in bars)
        for row, bar in enumerate(bars):
            left = 0.0
            for index, length in enumerate(bar.parts or (bar.value,)):
                shade = 1.0 if not bar.parts else 1.0 - 0.8 * index / len(bar.parts)
                color, shade = (FIRST, shade) if bar.ours else (MUTED, 0.55 * shade)
                axes.barh(row, length, left=left, height=0.42, color=color, alpha=shade)
                left += length
            axes.text(0, row - 0.3, bar.label, va="bottom", ha="left", color=MUTED).set_in_layout(False)
            end = bar.value + 0.015 * largest
            axes.text(end, row, bar.text, va="center", ha="left", color=INK, weight="bold").set_in_layout(False)
        axes.set_ylim(len(bars) - 0.5, -0.8)
        longest = min(MOST_CHARACTERS, max(len(bar.text) for bar in bars))
        axes.set_xlim(0, (largest or 1) / (1 - CHARACTER_SHARE * (longest + 2)))
        axes.axis("off")

    return _render(draw, name, (COLUMN[0], 0.35 + 0.62 * len(bars)))


def _draw_line(axes: Axes, line: Line) -> None:
    raw = thin(line.curve)
    if line.smoothed and len(line.curve.steps) >= 100:
        axes.plot(raw.steps, raw.values, color=line.color, alpha=0.3, linewidth=0.8)
        mean = thin(smooth(line.curve), MAX_POINTS // 4)
        axes.plot(mean.steps, mean.values, color=line.color, label=line.label)
    else:
        dot = "o" if line.marked or len(raw.steps) == 1 else ""
        axes.plot(
            raw.steps, raw.values, color=line.color, label=line.label, marker=dot, markersize=4, clip_on=not line.marked
        )


def _use_log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # The narrower the axis, the more ticks within a decade.
    ticks = (1, 2, 3, 4, 6, 8) if high < 10 * low else (1, 2, 5) if high < 50 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _leave_out_outliers(axes: Axes, lines: Sequence[Line]) -> None:
    """End the y axis where the body of the curves ends, so that one spike does not flatten all else."""
    values = sorted(value for line in lines for value in line.curve.values)
    if len(values) < 100:
        return
    low, high = values[0], values[int(len(values) * 0.995)]
    if high > low and values[-1] > high + 2 * (high - low):
        axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))


def _tick(value: float) -> str:
    if abs(value) >= 1e6:
        return units.count(value)
    return f"{value:,.6g}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def _render(draw: Any, name: str, inches: tuple[float, float]) -> str:
    """Draw on fresh axes, return inline SVG. matplotlib is imported here, since that takes most of a second."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Identifiers in the SVG come from this salt: fixed for reproducible bytes, its own for each plot of the page.
    style: Any = {**_STYLE, "svg.hashsalt": f"trivium-{name}"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        draw(axes)
        return _to_inline_svg(figure)


def _to_inline_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The drawing's own style sheet would apply to the whole page; its size is the page's business.
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg)
    # matplotlib numbers its groups the same way in every drawing, and one page may hold an id once.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # A hundredth of a pixel is enough for a curve, and a third of the bytes.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.strip()
