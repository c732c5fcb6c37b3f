"""Learning rates against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from trivium.training.schedule import learning_rate
from trivium.training.settings import TrainingSettings

STEPS, WARMUP, PEAK, RATIO = 100, 10, 0.02, 0.1


def rates(**changes: object) -> list[float]:
    chosen = {"steps": STEPS, "warmup_steps": WARMUP, "learning_rate": PEAK, "final_learning_rate_ratio": RATIO}
    settings = TrainingSettings(**{**chosen, **changes})
    return [learning_rate(step, settings) for step in range(settings.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warmup_is_a_line_that_ends_at_the_peak(schedule: str) -> None:
    assert rates(schedule=schedule)[:WARMUP] == [PEAK * (step + 1) / WARMUP for step in range(WARMUP)]
    assert rates(schedule=schedule)[WARMUP] == PEAK


@pytest.mark.parametrize("step", [10, 11, 40, 77, 98, 99])
def test_closed_forms(step: int) -> None:
    share = (step - 10) / 89
    low = PEAK * RATIO
    assert rates(schedule="constant")[step] == PEAK
    assert rates(schedule="linear")[step] == pytest.approx(PEAK + (low - PEAK) * share, rel=1e-12)
    cosine = low + (PEAK - low) * (1 + math.cos(math.pi * share)) / 2
    assert rates(schedule="cosine")[step] == pytest.approx(cosine, rel=1e-12)
    level_then_line = PEAK if step <= 79 else PEAK - (PEAK - low) * (step - 79) / 20
    assert rates(schedule="wsd", decay_fraction=0.2)[step] == pytest.approx(level_then_line, rel=1e-12)


def test_inverse_square_root_is_that_of_the_transformer() -> None:
    """D^-0.5 min(s^-0.5, s w^-1.5) up to a constant (Vaswani et al., 2017, eq. 3), s counted from 1."""
    found = rates(schedule="inverse_sqrt")
    formula = [min(s**-0.5, s * WARMUP**-1.5) for s in range(1, len(found) + 1)]
    assert found == pytest.approx([PEAK * value / max(formula) for value in formula], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_ends_at_the_final_rate(schedule: str) -> None:
    assert rates(schedule=schedule)[-1] == pytest.approx(PEAK * RATIO, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 0), (2, 2), (3, 2)])
def test_shortest_runs_have_a_positive_rate(schedule: str, steps: int, warmup: int) -> None:
    for rate in rates(schedule=schedule, steps=steps, warmup_steps=warmup):
        assert PEAK * RATIO * 0.999 <= rate <= PEAK


def test_default_warmup_is_one_step_in_fifty() -> None:
    assert TrainingSettings(steps=1000).resolved_warmup_steps == 20
    assert TrainingSettings(steps=49).resolved_warmup_steps == 0


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValidationError, match="must not exceed steps"):
        TrainingSettings(steps=10, warmup_steps=11)
