"""Draws follow the distribution, and depend on the sequence alone."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.generation.sampling import draw, sequence_seed, uniform


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The statistic in standard deviations above its mean (normal approximation)."""
    expected = probabilities * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(counts) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def check_distribution(scores: torch.Tensor, uniforms: list[float]) -> None:
    """Draws from `scores` (V,) are as often each token as its probability says."""
    probabilities = scores.double().softmax(-1)
    drawn = draw(scores.expand(len(uniforms), -1), uniforms)
    counts = torch.bincount(drawn, minlength=len(scores)).double()
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts[probabilities > 0], probabilities[probabilities > 0]) < 5


SCORES = torch.randn(40, generator=torch.Generator().manual_seed(0))
SCORES[::7] = -math.inf


@pytest.mark.parametrize("along", ["steps", "sequences"])
def test_draws_follow_the_distribution(along: str) -> None:
    """Along one sequence (t varies), and across sequences at one position (i varies)."""
    if along == "steps":
        numbers = [uniform(sequence_seed(7, 3), t) for t in range(20_000)]
    else:
        numbers = [uniform(sequence_seed(7, i), 3) for i in range(20_000)]
    check_distribution(SCORES, numbers)


def test_the_check_sees_a_skew() -> None:
    """Broken control: squared uniforms favour the first tokens."""
    with pytest.raises(AssertionError):
        check_distribution(SCORES, [uniform(7, t) ** 2 for t in range(20_000)])


def test_neighbouring_draws_are_independent() -> None:
    """Correlation of the number at (i, t) with those at (i, t+1) and (i+1, t) is within 5 errors of 0."""
    grid = torch.tensor([[uniform(sequence_seed(0, i), t) for t in range(120)] for i in range(120)])
    for one, other in ((grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1])):
        correlation = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]
        assert abs(float(correlation)) < 5 / math.sqrt(one.numel())


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    scores = torch.randn(32, 500, generator=torch.Generator().manual_seed(1)) * 3
    numbers = [uniform(sequence_seed(5, i), 0) for i in range(32)]
    together = draw(scores, numbers).tolist()
    assert together == [draw(scores[i : i + 1], [numbers[i]]).item() for i in range(32)]
    order = random.Random(0).sample(range(32), 32)
    assert draw(scores[order], [numbers[i] for i in order]).tolist() == [together[i] for i in order]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-50, 50), st.just(-math.inf)), min_size=1, max_size=20),
    st.sampled_from([0.0, 2.0**-52, 0.5, 1 - 2.0**-51, 1 - 2.0**-52]),
)
def test_the_edges_of_the_unit_interval_draw_possible_tokens(scores: list[float], number: float) -> None:
    """No draw falls off the end, or on a token of probability 0."""
    row = torch.tensor([[*scores, 0.0]])
    drawn = int(draw(row, [number]))
    assert row.double().softmax(-1)[0, drawn] > 0


def test_numbers_are_fixed_for_all_time() -> None:
    """The same on every machine and version: a recorded seed keeps its meaning."""
    assert [sequence_seed(0, 0), sequence_seed(-1, 2)] == RECORDED_SEEDS
    assert [uniform(0, 0), uniform(123, 45)] == RECORDED_UNIFORMS
    assert all(0 <= uniform(seed, 0) < 1 for seed in (-(2**63), 2**63 - 1))


RECORDED_SEEDS = [-201166852263207422, -8779916874237647302]
RECORDED_UNIFORMS = [0.5189496528636879, 0.70619931902438]
