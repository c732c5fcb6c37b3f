"""What is trained, counted on models with adapters and by the planner's formulas."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from adapted_models import CONFIGS
from trivium.models.build import build_model
from trivium.peft.apply import add_adapter
from trivium.peft.settings import (
    BiasSettings,
    DoraSettings,
    HoulsbySettings,
    IA3Settings,
    LoraSettings,
    NoPeftSettings,
    NormsSettings,
    ParallelSettings,
    PeftSettings,
    PfeifferSettings,
    RsLoraSettings,
)
from trivium.planner.peft_counts import num_trainable_parameters
from trivium.planner.settings import PlanSettings

CASES: list[tuple[PeftSettings, dict[str, Any]]] = [
    (NoPeftSettings(), {}),
    (BiasSettings(), {}),
    (NormsSettings(), {}),
    (LoraSettings(rank=3, targets=("query", "value", "output")), {"rank": 3, "targets": ("query", "value", "output")}),
    (RsLoraSettings(rank=5, targets=("key", "up", "down")), {"rank": 5, "targets": ("key", "up", "down")}),
    (DoraSettings(rank=2, targets=("output", "down")), {"rank": 2, "targets": ("output", "down")}),
    (IA3Settings(), {}),
    (HoulsbySettings(bottleneck=7), {"bottleneck": 7}),
    (PfeifferSettings(bottleneck=5), {"bottleneck": 5}),
    (ParallelSettings(bottleneck=9), {"bottleneck": 9}),
]


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("settings", "planned"), CASES, ids=[settings.method for settings, _ in CASES])
def test_as_planned(settings: PeftSettings, planned: dict[str, Any], name: str) -> None:
    config = CONFIGS[name]
    if settings.method == "bias" and not config.bias.startswith("all"):
        pytest.skip("no biases: refused, as test_selective.py shows")
    model = build_model(config)
    adapter = add_adapter(model, settings)
    expected = num_trainable_parameters(config, PlanSettings(peft=settings.method, **planned))
    assert trainable(model) == expected > 0
    assert sum(parameter.numel() for parameter in adapter.parameters(model).values()) == expected
