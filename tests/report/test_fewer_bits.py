"""The section about fewer bits: what it shows, and that nothing it reads can hurt the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from report.test_page import HOSTILE, is_safe, read
from trivium.report import fewer_bits
from trivium.report.page import render
from trivium.report.run_data import RunData

COST: dict[str, Any] = {
    "scheme": {"format": "int8"},
    "bytes": {"original": 4_000_000, "quantized": 1_000_000, "share": 0.25},
    "speed": {"reading": {"original": 900.0, "quantized": 1800.0}, "writing": {"original": 50.0, "quantized": 100.0}},
    "parts": {"stack.blocks.0.mlp": 0.004, "stack.blocks.1.attention": 0.012, "head": 0.001},
    "table": [["size in memory", "4 MB", "1 MB (25%)"], ["same likeliest token", "", "99.80%"]],
}


def page(cost: Any) -> str:
    return render(RunData(Path("run"), summary={"compression": cost}))


def test_what_it_shows() -> None:
    text = read(page(COST)).text
    assert "The model in fewer bits (int8)" in text
    assert "0.25 times the original" in text and "2.00 times the original" in text
    assert "4 MB \N{RIGHTWARDS ARROW} 1 MB (25%)" in text and "99.80%" in text
    assert "stack.blocks.1.attention" in page(COST) and "1.20 %" in page(COST)
    assert page(COST) == page(COST)


def test_without_a_measurement_there_is_no_section() -> None:
    assert fewer_bits.section(RunData(Path("run"))) == ""
    assert "fewer bits" not in page(None)


@pytest.mark.parametrize(
    "cost",
    [
        dict.fromkeys(COST, HOSTILE),
        {"scheme": {"format": HOSTILE}, "table": [[HOSTILE] * 3, [1, 2, 3], "row", ["a"]], "parts": {HOSTILE: 1.0}},
        {"bytes": {"original": 0, "quantized": -5}, "parts": {"a": float("nan"), "b": -1, "c": 10**400}},
        {"bytes": {"original": "1", "quantized": None}, "speed": {"reading": [], "writing": {}}, "table": {"a": 1}},
        [],
        "text",
    ],
)
def test_nothing_it_reads_is_trusted(cost: Any) -> None:
    assert is_safe(page(cost))
