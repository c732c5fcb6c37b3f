"""The plot of what fewer bits cost: the error of every block's parts, and what each format adds to perplexity.

One PNG file, for directories and web pages alike. matplotlib is imported inside, since that takes most of a second.
Invariant its test checks: the same reports give the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trivium.progress import short_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]
"""What `compression_report` gives."""

INK, MUTED, RULE = "#1c1c1e", "#66666c", "#dfdcd4"
COLORS = ("#2b5c8a", "#b4531f", "#4f7d3a", "#7a4c8f", "#9a7b1e", "#3d8c8c", "#a13d5b")
LEAST_HEIGHT = 3.6
"""Of the picture, in inches."""
_STYLE: Any = {
    "font.size": 10.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def compression_plot(*reports: Report) -> bytes:
    """PNG: the error of each part of each block in the first report; size and change of perplexity in all of them.

    They must be of one original, on one text.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        height = max(LEAST_HEIGHT, 1.2 + 0.3 * len(reports))
        figure = Figure(figsize=(10.0, height), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        parts, changes = figure.subplots(1, 2)
        _draw_parts(parts, reports[0]["parts"], label(reports[0]))
        _draw_changes(changes, reports)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def label(report: Report) -> str:
    """What a report's scheme is called: `int4, 128, gptq`."""
    scheme = report["scheme"]
    if scheme is None:
        return "unchanged"
    group = [str(scheme["group_size"])] if scheme["group_size"] else []
    return ", ".join([scheme["format"], *group, *([scheme["method"]] if scheme["method"] != "nearest" else [])])


def _draw_parts(axes: Axes, parts: Mapping[str, float], format: str) -> None:
    """One line for each kind of part, over the blocks from first to last."""
    from matplotlib.ticker import MaxNLocator

    lines: dict[str, list[float]] = {}
    two = len({name.split(".")[0] for name in parts}) > 1
    for name, error in parts.items():
        stack, part = name.split(".")[0], name.rsplit(".", 1)[1]
        lines.setdefault(f"{stack}, {part}" if two else part, []).append(error)
    for color, (part, errors) in zip(COLORS, lines.items(), strict=False):
        axes.plot(range(1, len(errors) + 1), errors, color=color, label=part, marker="o", markersize=3, linewidth=1.4)
    axes.set_title(f"Error of each block's parts ({format})")
    axes.set_xlabel("block")
    axes.set_ylim(0, 1.25 * max(*parts.values(), 1e-6))  # room for the legend
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=MUTED, ncols=3, loc="upper left")


def _draw_changes(axes: Axes, reports: Sequence[Report]) -> None:
    """One row for the original and each report, with its size; the bar is the 95 % interval."""
    scored = "perplexity_change" in reports[0]["quality"]
    names = [f"original, {short_bytes(reports[0]['bytes']['original'])}"]
    axes.plot([0.0], [0], color=MUTED, marker="s", markersize=5, linestyle="")
    for row, report in enumerate(reports, 1):
        quality = report["quality"]
        names.append(f"{label(report)}, {short_bytes(report['bytes']['quantized'])}")
        change = quality["perplexity_change"] if scored else quality["error"]
        low, high = (quality["perplexity_interval"] if scored else None) or (change, change)
        bar = [[max(0.0, change - low)], [max(0.0, high - change)]]
        axes.errorbar([change], [row], xerr=bar, color=COLORS[0], marker="o", capsize=3, linestyle="")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    axes.margins(x=0.1, y=0.6 / len(reports))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")
    axes.set_title("Change of perplexity, and size in memory" if scored else "Error of the results, and size in memory")
