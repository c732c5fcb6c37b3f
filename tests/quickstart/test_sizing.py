"""The model chosen for a budget, and the seconds of its real steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from training.small import fails
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters, training_flops_per_token
from trivium.quickstart import sizing
from trivium.quickstart.sizing import SHAPES, TOKENS_PER_PARAMETER, shape_for, time_steps
from trivium.runtime import Runtime
from trivium.training.settings import TrainingSettings

VOCABULARY, LENGTH = 4096, 256
BUDGETS = [10.0 ** (power / 8) for power in range(8 * 10, 8 * 20)]
TINY = ModelConfig(vocab_size=64, width=32, layers=2, heads=2, max_positions=16)


def cost(model: ModelConfig) -> float:
    """FLOPs at which a model is trained on one token per parameter."""
    return training_flops_per_token(model, LENGTH) * num_parameters(model)


def assert_ratio_is_near(wanted: float) -> None:
    """Between the smallest and the largest model on offer, the tokens per parameter miss the ratio wanted by at most
    half the way (on a scale of factors) to the next model."""
    models = {flops: shape_for(flops, VOCABULARY, LENGTH) for flops in BUDGETS}
    costs = sorted({cost(model) for model in models.values()})
    margin = max(larger / smaller for smaller, larger in itertools.pairwise(costs)) ** 0.5
    assert margin < 2.5
    found = [flops / cost(model) for flops, model in models.items() if costs[0] < cost(model) < costs[-1]]
    assert len(found) > 20
    assert wanted / margin <= min(found) and max(found) <= wanted * margin


def test_more_compute_never_buys_a_smaller_model() -> None:
    sizes = [num_parameters(shape_for(flops, VOCABULARY, LENGTH)) for flops in BUDGETS]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(SHAPES), "each model on offer is the right one for some budget"


def test_tokens_per_parameter_are_near_the_ratio_wanted() -> None:
    assert_ratio_is_near(TOKENS_PER_PARAMETER)


def test_control_another_ratio_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "TOKENS_PER_PARAMETER", 20.0)
    assert fails(lambda: assert_ratio_is_near(TOKENS_PER_PARAMETER))


def test_the_models_on_offer_rise_in_size_and_fit_the_text() -> None:
    for (width, layers), (wider, deeper) in itertools.pairwise(SHAPES):
        assert width < wider and layers <= deeper
    model = shape_for(1e15, 1000, 77)
    assert (model.vocab_size, model.max_positions) == (1000, 77)
    assert model.width == 64 * model.heads


def test_a_step_is_timed_and_more_rows_take_longer() -> None:
    training = TrainingSettings(steps=1)
    few, many = (time_steps(TINY, Runtime(), training, rows, 2, 0.2) for rows in (2, 64))
    assert 0 < few < math.inf and many > 4 * few


def test_at_least_two_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[float] = []

    class Counted(sizing.AdamW):
        def step(self, *given: Any) -> None:
            updates.append(0.0)
            super().step(*given)

    monkeypatch.setattr(sizing, "AdamW", Counted)
    time_steps(TINY, Runtime(), TrainingSettings(steps=1), 2, 2, 0.0)
    assert len(updates) == 2
