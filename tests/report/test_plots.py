"""Plots: same bytes for the same numbers, no spike lost, small, and nothing unescaped."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from trivium.report.plots import MAX_POINTS, Bar, Line, bar_plot, line_plot, smooth, thin
from trivium.report.run_data import Curve


def long_curve(points: int = 100_000, spike: int = 3_803) -> Curve:
    values = [3 + math.sin(step / 9000) + 0.05 * math.sin(step * 12.9898) for step in range(points)]
    values[spike] = 40.0
    return Curve(tuple(range(points)), tuple(values))


def keeps_the_spike(thinned: Callable[[Curve], Curve]) -> bool:
    return 40.0 in thinned(long_curve()).values


def every_nth(curve: Curve) -> Curve:
    """The broken control: thinning as it is often done."""
    stride = len(curve.steps) // MAX_POINTS
    return Curve(curve.steps[::stride], curve.values[::stride])


def test_thinning_keeps_the_spike() -> None:
    assert keeps_the_spike(thin)
    assert not keeps_the_spike(every_nth)
    thinned = thin(long_curve())
    assert len(thinned.steps) <= MAX_POINTS
    assert list(thinned.steps) == sorted(set(thinned.steps))
    short = Curve((0, 1), (1.0, 2.0))
    assert thin(short) is short


def test_smoothing_keeps_a_straight_line() -> None:
    straight = Curve(tuple(range(400)), tuple(2.0 * step for step in range(400)))
    assert smooth(straight).values == pytest.approx(straight.values)


def test_same_numbers_same_bytes() -> None:
    lines = [Line(long_curve(5000), "training", smoothed=True)]
    svg = line_plot(lines, name="loss", last=5000)
    assert svg == line_plot(lines, name="loss", last=5000)
    assert len(svg) < 120_000


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1.0,), (2.0, 2.0), (0.1, 1000.0), tuple(float(1 + n % 7) for n in range(300))])
def test_plots_are_well_formed(values: tuple[float, ...], log: bool) -> None:
    curve = Curve(tuple(range(len(values))), values)
    svg = line_plot([Line(curve, "a", marked=True), Line(curve, "b", smoothed=True)], name="x", log=log)
    ET.fromstring(svg)
    assert "<style" not in svg and "<metadata" not in svg
    assert not re.search(r"#[0-9a-f]{6}", svg), "every colour comes from the page's style sheet"
    assert "math" not in svg


def test_labels_are_escaped_and_not_formulas() -> None:
    label = "<script>alert(1)</script> $\\frac{1}{2}$ & \u202e"
    svg = bar_plot([Bar(label, 2.0, label), Bar("ours", 1.0, "1.00", parts=(0.5, 0.5), ours=True)], name="bars")
    ET.fromstring(svg)
    assert "<script" not in svg
    assert "\\frac" in svg


def test_ids_differ_between_plots_of_one_page() -> None:
    curve = Curve((0, 1), (1.0, 2.0))
    first, second = (
        set(re.findall(r' id="([^"]+)"', line_plot([Line(curve, "a")], name=name))) for name in ("one", "two")
    )
    assert first and not first & second
