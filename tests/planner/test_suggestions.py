"""Suggestions lower the peak by the plan's own figures, and the largest batch is the largest."""

from __future__ import annotations

from typing import Any

import pytest

from trivium.config import build_settings
from trivium.models.config import ModelConfig
from trivium.planner.settings import PlanSettings
from trivium.planner.speed import Speed
from trivium.planner.stages import stage_phases
from trivium.planner.suggestions import fullest, largest_rows, suggested_lines, suggestions

LLAMA = ModelConfig(vocab_size=32000, width=1024, layers=12, heads=16, kv_heads=4, max_positions=1024)
MACHINE = Speed(fp32_flops=1e12, bf16_flops=2e12, read_bytes=1e10, source="a test")
GB = 10**9


def peak(settings: PlanSettings) -> int:
    return fullest(stage_phases(LLAMA, settings)).peak_bytes


def changed(settings: PlanSettings, change: str) -> PlanSettings:
    """The settings after what a suggestion writes."""
    return build_settings(PlanSettings, settings.model_dump(), "test", change.split())


@pytest.mark.parametrize(
    "asked",
    [
        {"stage": "finetune", "rows_per_micro_batch": 8},
        {"stage": "pretrain", "rows_per_micro_batch": 8, "precision": "bf16"},
        {"stage": "dpo", "rows_per_micro_batch": 4},
        {"stage": "ppo", "value_model": "model"},
        {"stage": "serve", "rows_per_micro_batch": 64},
        {"stage": "evaluate", "rows_per_micro_batch": 16, "precision": "bf16"},
        {"stage": "finetune", "peft": "lora", "rows_per_micro_batch": 8},
    ],
    ids=lambda asked: " ".join(map(str, asked.values())),
)
@pytest.mark.parametrize("available", [1 * GB, 4 * GB, 1000 * GB])
def test_each_suggestion_is_true(asked: dict[str, Any], available: int) -> None:
    settings = PlanSettings(**asked)
    found = suggestions(LLAMA, settings, available, MACHINE)
    assert found
    for each in found:
        after = changed(settings, each.change)
        assert peak(after) == each.peak_bytes < peak(settings), each
        assert each.fits == (each.peak_bytes <= available)
    order = [each.fits for each in found]
    assert order == sorted(order, reverse=True)
    assert len({each.change for each in found}) == len(found)
    assert suggested_lines(LLAMA, settings, available)[0].endswith("B)")


def test_what_fits_is_ranked_by_time_and_devices_come_last() -> None:
    found = suggestions(LLAMA, PlanSettings(rows_per_micro_batch=8), 20 * GB, MACHINE)
    fitting = [each for each in found if each.fits]
    without = [each.hours for each in fitting if "_ways" not in each.change]
    assert without == sorted(without, key=lambda hours: round(hours or 0, 3)) and len(without) > 3
    assert all("_ways" in each.change for each in fitting[len(without) :])


def test_changes_together_where_none_is_enough_alone() -> None:
    settings = PlanSettings(stage="finetune", rows_per_micro_batch=8)
    best = suggestions(LLAMA, settings, 1 * GB)[0]
    assert best.fits and best.why == "together" and len(best.change.split()) > 1
    first = best.change.split()[0]
    assert peak(changed(settings, first)) > 1 * GB  # alone it would not do


@pytest.mark.parametrize("stage", ["pretrain", "dpo", "grpo", "evaluate", "serve"])
def test_the_largest_rows_are_the_largest(stage: str) -> None:
    settings = PlanSettings(stage=stage)  # type: ignore[arg-type]
    most = largest_rows(LLAMA, settings, 12 * GB)
    assert most >= 1
    assert peak(settings.model_copy(update={"rows_per_micro_batch": most})) <= 12 * GB
    assert peak(settings.model_copy(update={"rows_per_micro_batch": most + 1})) > 12 * GB
    assert largest_rows(LLAMA, settings, 10**8) == 0


def test_fewer_rows_keep_the_step() -> None:
    settings = PlanSettings(stage="pretrain", rows_per_micro_batch=32, data_ways=2)
    found = suggestions(LLAMA, settings, 12 * GB)
    (rows,) = (each for each in found if each.change.startswith("rows_per_micro_batch"))
    assert "rows_per_step=64" in rows.change and rows.fits
