"""The memory of every stage, by hand from the parts of one model's step; and what must never need less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner import stages
from trivium.planner.allocator import cuda_idle_bytes
from trivium.planner.inference import evaluation_memory, generation_memory
from trivium.planner.memory import estimate
from trivium.planner.parts import Parts
from trivium.planner.peft_counts import num_trainable_parameters
from trivium.planner.settings import Peft, PlanSettings
from trivium.planner.sharding import largest_unit_parameters, tensor_share
from trivium.planner.stages import CUDA_CONTEXT_BYTES, ROLLOUT_BYTES, stage_phases, trained_parameters
from trivium.planner.weights import stored_weights_bytes
from trivium.quantization.schemes import scheme_for

LLAMA = ModelConfig(vocab_size=5000, width=256, layers=4, heads=8, kv_heads=4, max_positions=512)
BERT = ModelConfig(
    vocab_size=5000, width=256, layers=4, heads=8, kind="encoder", norm="layernorm", mlp="plain", bias="all",
    positions="learned", norm_placement="post", max_positions=512,
)  # fmt: skip
T5 = ModelConfig(
    vocab_size=5000, width=256, layers=2, heads=8, kind="encoder-decoder", positions="relative", max_positions=512
)
MODELS = {"llama": LLAMA, "bert": BERT, "t5": T5}
N = num_parameters(LLAMA)


def phases(config: ModelConfig = LLAMA, **changes: Any) -> dict[str, Parts]:
    return stage_phases(config, PlanSettings(**changes))


def only(config: ModelConfig = LLAMA, **changes: Any) -> Parts:
    (parts,) = phases(config, **changes).values()
    return parts


def step(config: ModelConfig = LLAMA, rows: int = 1, length: int = 512, **more: Any) -> Parts:
    return Parts.of(estimate(config, rows_per_micro_batch=rows, sequence_length=length, **more))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_training_is_the_step_itself(name: str, precision: str, checkpointing: bool) -> None:
    how = {"precision": precision, "gradient_checkpointing": checkpointing}
    planned = step(MODELS[name], 3, 200, **how)
    for stage in ("pretrain", "finetune"):
        asked = only(MODELS[name], stage=stage, rows_per_micro_batch=3, sequence_length=200, **how)
        assert asked.to_dict() == planned.to_dict()


def test_lora_by_hand() -> None:
    full, lora = only(), only(peft="lora", rank=4)
    trained = 4 * 4 * ((256 + 256) + (256 + 128))
    assert trained_parameters(LLAMA, PlanSettings(peft="lora", rank=4)) == trained
    assert lora.gradients_bytes == 4 * trained and lora.optimizer_bytes == 8 * trained
    assert lora.weights_bytes == full.weights_bytes + 4 * trained
    assert lora.logits_bytes == full.logits_bytes - 4 * 5000 * 256  # the head's gradient
    narrow = 4 * 512 * 4 * (4 + 4)  # layers, positions, bytes, two ranks
    unread = 4 * 512 * 4 * (256 + LLAMA.mlp_width)  # what up and gate, and down, would have kept
    assert lora.activations_bytes == full.activations_bytes + narrow - unread


@pytest.mark.parametrize("base", ["bf16", "int8", "int4", "nf4"])
def test_a_quantized_base_by_hand(base: str) -> None:
    added = num_trainable_parameters(LLAMA, PlanSettings(peft="lora"))
    expected = stored_weights_bytes(LLAMA, "fp32", scheme_for(base)) + 4 * added
    assert only(peft="lora", base=base).weights_bytes == expected < only(peft="lora").weights_bytes


@pytest.mark.parametrize(
    "method",
    [name for name in get_args(Peft) if name not in ("none", "bias")],  # T5 and Llama have no biases
)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_trains_what_it_counts(name: str, method: str) -> None:
    config, settings = MODELS[name], PlanSettings(peft=method, sequence_length=100)  # type: ignore[arg-type]
    (parts,) = stage_phases(config, settings).values()
    trained = num_trainable_parameters(config, settings)
    assert parts.gradients_bytes == 4 * trained and parts.optimizer_bytes == 8 * trained
    full = only(config, sequence_length=100)
    assert parts.peak_bytes < full.peak_bytes


def test_other_optimizers() -> None:
    assert only(optimizer="sgd").optimizer_bytes == 0
    assert only(optimizer="sgd_momentum").optimizer_bytes == 4 * N


def test_the_last_layers_keep_activations_of_their_own_only() -> None:
    two = only(peft="last_layers", last_layers=2)
    assert two.activations_bytes == only(LLAMA.model_copy(update={"layers": 2})).activations_bytes
    assert two.weights_bytes == only().weights_bytes


def test_a_prompt_makes_rows_longer() -> None:
    longer = only(peft="prompt", virtual_tokens=12, sequence_length=100)
    as_long = only(peft="ia3", sequence_length=112)
    own = 112 * 4 * 4 * (2 * 128 + LLAMA.mlp_width)
    assert longer.activations_bytes == as_long.activations_bytes - own


def test_reward_and_dpo_by_hand() -> None:
    reward = only(stage="reward", rows_per_micro_batch=2, sequence_length=100)
    assert reward.logits_bytes == 0
    assert reward.gradients_bytes == 4 * (N + 256) == 4 * trained_parameters(LLAMA, PlanSettings(stage="reward"))
    pairs = step(rows=4, length=100)
    assert reward.activations_bytes == pairs.activations_bytes
    live = only(stage="dpo", rows_per_micro_batch=2, sequence_length=100)
    cached = only(stage="dpo", rows_per_micro_batch=2, sequence_length=100, cached_reference=True)
    assert cached.to_dict() == pairs.to_dict()
    assert live.weights_bytes == cached.weights_bytes + 4 * N
    eight = only(stage="dpo", rows_per_micro_batch=2, sequence_length=100, base="int8")
    assert eight.weights_bytes == cached.weights_bytes + stored_weights_bytes(LLAMA, "fp32", scheme_for("int8"))
    adapter = only(stage="dpo", peft="lora", sequence_length=100)
    assert adapter.weights_bytes == only(peft="lora").weights_bytes  # the reference is the base itself


def test_ppo_and_grpo_by_hand() -> None:
    how = {"rows_per_micro_batch": 2, "sequence_length": 100, "new_tokens": 60}
    grpo = phases(stage="grpo", reward_model=False, **how)
    assert set(grpo) == {"rollout", "update"}
    train = step(rows=2, length=100)
    writing = Parts.of(generation_memory(LLAMA, rows=2, prompt_length=40, new_tokens=60, precision="fp32"))
    update, rollout = grpo["update"], grpo["rollout"]
    assert update.activations_bytes == train.activations_bytes and update.kv_cache_bytes == 0
    assert update.weights_bytes == rollout.weights_bytes == train.weights_bytes + 4 * N
    assert rollout.kv_cache_bytes == writing.kv_cache_bytes and rollout.gradients_bytes == 0
    assert rollout.optimizer_bytes == 8 * N and update.rollouts_bytes == 2 * 100 * ROLLOUT_BYTES["grpo"]
    rewarded = phases(stage="grpo", **how)["update"]
    assert rewarded.weights_bytes == update.weights_bytes + 4 * (N + 256)
    ppo = phases(stage="ppo", reward_model=False, rows_per_step=64, **how)["update"]
    assert ppo.gradients_bytes == 4 * (N + 257) and ppo.rollouts_bytes == 64 * 100 * ROLLOUT_BYTES["ppo"]
    both = phases(stage="ppo", reward_model=False, value_model="model", **how)["update"]
    assert both.gradients_bytes == 4 * (N + N + 256) and both.optimizer_bytes == 2 * both.gradients_bytes
    assert both.activations_bytes == 2 * train.activations_bytes


@pytest.mark.parametrize("base", [None, "bf16", "int8", "int4"])
def test_reading_is_what_inference_says(base: str | None) -> None:
    scheme = None if base is None else scheme_for(base)
    asked = only(stage="evaluate", rows_per_micro_batch=2, sequence_length=64, precision="bf16", base=base)
    assert asked == Parts.of(evaluation_memory(LLAMA, rows=2, length=64, precision="bf16", scheme=scheme))
    wanted = generation_memory(LLAMA, rows=2, prompt_length=48, new_tokens=16, precision="bf16", scheme=scheme)
    how = {"rows_per_micro_batch": 2, "sequence_length": 64, "new_tokens": 16, "precision": "bf16", "base": base}
    assert only(stage="serve", **how) == only(stage="generate", **how) == Parts.of(wanted)
    numbers = 2 * 4 * 2 * 64 * 4 * 32  # keys and values, layers, rows, positions, heads, width
    eight = only(stage="serve", kv_cache="int8", **how)
    assert only(stage="serve", **how).kv_cache_bytes == 2 * numbers
    assert eight.kv_cache_bytes == numbers + 4 * numbers // 32  # and a scale for each key and value


def test_a_translation_reads_its_source() -> None:
    asked = only(T5, stage="generate", sequence_length=100, new_tokens=30, num_beams=3)
    wanted = generation_memory(
        T5, rows=1, prompt_length=1, new_tokens=30, precision="fp32", num_beams=3, source_length=70
    )
    assert asked == Parts.of(wanted)
    longer = only(T5, stage="generate", sequence_length=100, new_tokens=30, num_beams=3, source_length=200)
    assert longer.kv_cache_bytes > asked.kv_cache_bytes
    trained = only(T5, sequence_length=100, source_length=300)
    assert trained.to_dict() == step(T5, length=100, source_length=300).to_dict()


# -------------------------------------------------------------------------------------------------- several devices


def test_shares_by_hand() -> None:
    one, data = only(), only(data_ways=4)
    assert data.gradients_bytes == one.gradients_bytes + min(32 << 20, 4 * N)
    assert data.weights_bytes == one.weights_bytes
    unit = largest_unit_parameters(LLAMA)
    fsdp = only(fsdp_ways=4, precision="bf16")
    assert fsdp.weights_bytes == N + 2 * 2 * unit  # a quarter of 4 bytes each, and two gathered units in bf16
    assert fsdp.gradients_bytes == N + 4 * unit and fsdp.optimizer_bytes == 2 * N
    tensor = only(tensor_ways=4)
    assert tensor.optimizer_bytes == 8 * num_parameters(tensor_share(LLAMA, 4))
    frozen = only(stage="serve", fsdp_ways=4)
    assert frozen.weights_bytes == N + 2 * 4 * unit


def test_a_card_has_a_context_of_its_own() -> None:
    card = only(device="cuda")
    assert card.framework_bytes == CUDA_CONTEXT_BYTES
    assert card.activations_bytes == only().activations_bytes
    largest = 512 * LLAMA.mlp_width * 4
    assert card.allocator_bytes == cuda_idle_bytes(card.tensors_bytes, largest)


# ---------------------------------------------------------------------------------------------- what never needs less

STAGES = ["pretrain", "finetune", "reward", "dpo", "ppo", "grpo", "evaluate", "generate", "serve"]


def peak(config: ModelConfig = LLAMA, **changes: Any) -> int:
    return max(parts.peak_bytes for parts in phases(config, **changes).values())


def never_less(stage: str, less: dict[str, Any], more: dict[str, Any]) -> bool:
    return peak(stage=stage, **less) <= peak(stage=stage, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_more_never_needs_less(stage: str) -> None:
    assert never_less(stage, {"rows_per_micro_batch": 2}, {"rows_per_micro_batch": 5})
    assert never_less(stage, {"sequence_length": 100}, {"sequence_length": 300})
    assert (
        peak(stage=stage)
        < peak(LLAMA.changed(layers=6), stage=stage)
        < peak(LLAMA.changed(layers=6, vocab_size=20000), stage=stage)
    )
    for ways in ("fsdp_ways", "tensor_ways"):
        big = {"rows_per_micro_batch": 4}
        assert never_less(stage, {ways: 4, **big}, {**big}), ways
    assert never_less(stage, {"rows_per_micro_batch": 9}, {"rows_per_micro_batch": 9, "data_ways": 2})
    assert not never_less(stage, {"rows_per_micro_batch": 50}, {"rows_per_micro_batch": 2})  # broken control


@pytest.mark.parametrize("stage", ["finetune", "reward", "dpo", "ppo", "grpo"])
def test_less_trained_and_fewer_bits_never_need_more(stage: str) -> None:
    peaks = [peak(stage=stage), peak(stage=stage, peft="lora")]
    peaks += [peak(stage=stage, peft="lora", base=base) for base in ("bf16", "int8", "nf4")]
    assert peaks == sorted(peaks, reverse=True)
    assert peak(stage=stage, gradient_checkpointing=True, rows_per_micro_batch=4) < peak(
        stage=stage, rows_per_micro_batch=4
    )


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="writes text, and this model is an encoder"):
        phases(BERT, stage="generate")
    with pytest.raises(UserError, match="the model has learned 512 positions: give 512 at most"):
        phases(BERT, sequence_length=513)
    with pytest.raises(UserError, match="tensor_ways=3 does not divide"):
        phases(tensor_ways=3)


@pytest.mark.parametrize(
    ("forgotten", "check"),
    [
        ("_frozen_weights", test_reward_and_dpo_by_hand),
        ("unkept_bytes", test_lora_by_hand),
        ("added_parameters", test_lora_by_hand),
        ("_rollouts", test_ppo_and_grpo_by_hand),
        ("largest_unit_parameters", test_shares_by_hand),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_control_a_part_that_is_forgotten_is_seen(
    forgotten: str, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    monkeypatch.setattr(stages, forgotten, lambda *arguments: 0)
    with pytest.raises(AssertionError):
        check()
