"""FLOPs and time of stages, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from trivium.models.config import ModelConfig
from trivium.models.counts import flops_per_token, num_parameters, training_flops_per_token
from trivium.planner.durations import Duration, duration, flops_of_token
from trivium.planner.settings import PlanSettings
from trivium.planner.speed import Speed
from trivium.planner.stages import stage_phases

LLAMA = ModelConfig(vocab_size=5000, width=256, layers=4, heads=8, kv_heads=4, max_positions=512)
MACHINE = Speed(fp32_flops=1e12, bf16_flops=2e12, read_bytes=1e10, source="a test")
F, W = flops_per_token(LLAMA, 512), flops_per_token(LLAMA, 0)


def flops(**changes: Any) -> int:
    return flops_of_token(LLAMA, PlanSettings(**changes))


def taken(speed: Speed | None = MACHINE, **changes: Any) -> Duration:
    settings = PlanSettings(**changes)
    return duration(LLAMA, settings, stage_phases(LLAMA, settings), speed)


def test_flops_by_hand() -> None:
    assert flops() == flops(stage="pretrain") == training_flops_per_token(LLAMA, 512) == 3 * F
    assert flops(gradient_checkpointing=True) == 4 * F
    assert flops(peft="lora") == 3 * F - W
    half = flops_per_token(LLAMA.changed(layers=2), 512)
    assert flops(peft="last_layers", last_layers=2) == F + 2 * half
    assert flops(stage="dpo") == 4 * F and flops(stage="dpo", cached_reference=True) == 3 * F
    assert flops(stage="grpo") == 5 * F and flops(stage="grpo", reward_model=False) == 4 * F
    assert flops(stage="grpo", updates_per_rollout=3) == 11 * F
    assert flops(stage="ppo", value_model="model") == 8 * F
    assert flops(stage="evaluate") == flops(stage="generate") == F


def test_training_time_by_hand() -> None:
    one = taken(tokens=10**6, utilisation=0.5)
    seconds = 10**6 * 3 * F / (1e12 * 0.5)
    assert one.hours == pytest.approx(seconds / 3600) and one.tokens_per_second == pytest.approx(1e6 / seconds)
    assert one.steps == -(-(10**6) // 512) and one.total_flops == 10**6 * 3 * F
    faster = taken(tokens=10**6, utilisation=0.5, precision="bf16", data_ways=4)
    assert one.hours is not None and faster.hours == pytest.approx(one.hours / 8)
    assert taken(stage="pretrain").tokens == 20 * num_parameters(LLAMA) and taken().tokens == 10**6
    assert taken(tokens=100, rows_per_step=8, stage="dpo").steps == 1


def test_generation_is_bound_by_what_is_read() -> None:
    settings = PlanSettings(stage="generate", sequence_length=100, new_tokens=50)
    (writing,) = stage_phases(LLAMA, settings).values()
    read = 4 * num_parameters(LLAMA) + 0.75 * writing.kv_cache_bytes
    asked = taken(stage="generate", sequence_length=100, new_tokens=50, tokens=1000)
    assert asked.decode_limit == pytest.approx(1e10 / read) == asked.tokens_per_second
    assert asked.hours == pytest.approx(1000 * read / 1e10 / 3600)
    packed = taken(stage="generate", sequence_length=100, new_tokens=50, base="int8")
    assert packed.decode_limit is not None and asked.decode_limit is not None
    assert 3 < packed.decode_limit / asked.decode_limit < 4
    slow = Speed(fp32_flops=1e9, bf16_flops=1e9, read_bytes=1e12, source="a test whose products are slow")
    bound = taken(slow, stage="serve", sequence_length=100, new_tokens=50, rows_per_micro_batch=16)
    assert bound.decode_limit == pytest.approx(1e9 * 0.55 / flops_per_token(LLAMA, 75))
    assert taken().decode_limit is None


def test_rollouts_take_the_time_of_their_writing() -> None:
    grpo = taken(stage="grpo", tokens=1000)
    assert grpo.hours is not None and grpo.decode_limit is not None
    update = 1000 * flops(stage="grpo") / (1e12 * 0.55)
    assert grpo.hours * 3600 == pytest.approx(update + 500 / grpo.decode_limit)


def test_without_a_speed_there_is_no_time() -> None:
    asked = taken(None, stage="generate")
    assert (asked.hours, asked.tokens_per_second, asked.decode_limit) == (None, None, None)
    assert asked.total_flops > 0
