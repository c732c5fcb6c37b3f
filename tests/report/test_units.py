"""Numbers as people read them."""

from __future__ import annotations

import pytest

from trivium.report import units


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1.9234, "1.92"), (2019.4, "2,019"), (0.012345, "0.0123"), (3e-4, "3.00e-04"), (-12.34, "-12.3")],
)
def test_figure(value: float, expected: str) -> None:
    assert units.figure(value) == expected


def test_figure_of_the_extremes() -> None:
    for value in (float("nan"), float("inf"), 1e300, -1e-300, 5e-324):
        assert len(units.figure(value)) < 12


@pytest.mark.parametrize(
    ("value", "expected"), [(950, "950"), (8192, "8,192"), (13_893_504, "13.9 M"), (1.2e9, "1.20 B"), (3e13, "30.0 T")]
)
def test_count(value: float, expected: str) -> None:
    assert units.count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(512, "512 B"), (1536, "1.54 kB"), (2_480_343_613, "2.48 GB"), (10**18, "1,000,000 TB")]
)
def test_size(value: float, expected: str) -> None:
    assert units.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4.21, "4.2 s"), (252, "4 min 12 s"), (7500, "2 h 05 min"), (360_000, "4 d 4 h"), (3599.7, "1 h 00 min")],
)
def test_duration(value: float, expected: str) -> None:
    assert units.duration(value) == expected
