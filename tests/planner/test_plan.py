"""`tv.plan`: parts that add up, every key of the contract, and what makes no sense refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trivium as tv
from planner.test_reading import write_config
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.planner.plan import plan, settings_of_recipe
from trivium.planner.settings import PlanSettings
from trivium.planner.table import plan_table
from trivium.pretraining.planning import planned_memory

KEYS = {
    *("num_parameters", "num_trainable_parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes"),
    *("activations_bytes", "logits_bytes", "kv_cache_bytes", "peak_bytes", "fits", "by_precision", "rule_of_thumb"),
    "suggestions",
}
LLAMA = ModelConfig(vocab_size=5000, width=256, layers=4, heads=8, kv_heads=4, max_positions=512)
SPEEDS = [{"device": "cpu", "fp32_gflops": 400.0, "bf16_gflops": 800.0, "read_gb_per_s": 40.0}]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine of known speed, so that no test measures this one."""
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"processor": "A Processor", "speeds": SPEEDS}))
    return str(file)


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "reward", "dpo", "ppo", "grpo", "evaluate", "generate"])
def test_every_key_and_parts_that_add_up(stage: str, machine: str) -> None:
    values = plan(LLAMA, stage=stage, machine=machine).to_dict()
    assert set(values) >= KEYS
    parts = [size for name, size in values.items() if name.endswith("_bytes") and name not in ("peak_bytes",)]
    assert values["peak_bytes"] == sum(parts) - values["available_bytes"]
    assert values["peak_bytes"] == max(phase["peak_bytes"] for phase in values["phases"].values())
    assert json.loads(json.dumps(values)) == values
    assert values["time"]["hours"] > 0 and values["fits"] == (values["peak_bytes"] <= values["available_bytes"])


def test_a_number_of_parameters_gives_the_textbook(machine: str) -> None:
    values = tv.plan(1e9, machine=machine).to_dict()
    assert set(values) >= KEYS
    assert values["by_precision"] == {"fp32": 4e9, "fp16": 2e9, "bf16": 2e9, "int8": 1e9, "int4": 5e8}
    assert values["rule_of_thumb"] == {"inference_bytes": 4e9, "training_bytes": 24e9}
    assert values["peak_bytes"] == 24e9 and values["num_parameters"] == 10**9
    assert values["time"]["flops_per_token"] == 6 * 10**9 and values["time"]["tokens"] == 20 * 10**9
    assert tv.plan(10**9, memory="25GB", machine=machine).fits and not tv.plan(1e9, memory="23GB", machine=machine).fits
    shaped = tv.plan(1e9, peft="lora", precision="bf16", machine=machine)
    assert "a Llama of 16 layers of width" in shaped.model and shaped.num_parameters == pytest.approx(1e9, rel=0.1)
    for wrong in (0, -1, 1e30, float("nan"), float("inf")):
        with pytest.raises(UserError, match="parameters: give a number"):
            tv.plan(wrong)


def test_whatever_stands_for_a_model(tmp_path: Path, machine: str) -> None:
    file = write_config(tmp_path / "model", "smollm2-135m")
    by_name = tv.plan(str(file), machine=machine)
    assert by_name.num_parameters == 134_515_008 == tv.plan(file.parent, machine=machine).num_parameters
    lora = tv.plan(file, PlanSettings(peft="lora"), machine=machine, rank=4)
    assert lora.num_trainable_parameters == 30 * 4 * ((576 + 576) + (576 + 192))
    reading = tv.plan(file, stage="generate", machine=machine)
    assert reading.num_trainable_parameters == 0 and reading.to_dict()["kv_cache_bytes"] > 0


def test_the_plan_of_a_recipe_is_what_its_run_will_state(machine: str) -> None:
    recipe = tv.PretrainRecipe(
        run="a-run",
        data={"train": ["text.txt"], "sequence_length": 64, "rows_per_step": 32, "rows_per_micro_batch": 4},
        model=ModelConfig(vocab_size=300, width=32, layers=2, heads=2, max_positions=64),
        training={"steps": 10, "precision": "bf16"},
    )
    settings = settings_of_recipe(recipe)
    assert settings.tokens == 10 * 32 * 64
    asked = plan(recipe, machine=machine)
    assert asked.peak_bytes == planned_memory(recipe).peak_bytes
    assert asked.duration.steps == 10 and asked.settings.packed_documents


def test_a_packed_model_stays_packed_where_it_is_only_read(tmp_path: Path, machine: str) -> None:
    from trivium.checkpoints.config_files import scheme_values
    from trivium.quantization.schemes import scheme_for

    file = write_config(tmp_path / "model", "smollm2-135m", **scheme_values(scheme_for("int8")))
    assert tv.plan(file, stage="generate", machine=machine).settings.base == "int8"
    assert tv.plan(file, stage="generate", base="bf16", machine=machine).settings.base == "bf16"
    assert tv.plan(file, peft="lora", machine=machine).settings.base == "int8"
    assert tv.plan(file, machine=machine).settings.base is None  # full training needs whole weights


def test_a_budget_has_a_best_model(machine: str) -> None:
    assert plan(LLAMA, machine=machine).compute_optimal is None
    own = plan(LLAMA, stage="pretrain", tokens=10**6, machine=machine)
    assert own.compute_optimal is not None and own.compute_optimal["flops"] == own.duration.total_flops
    hours = plan(LLAMA, budget_hours=10, utilisation=0.5, machine=machine).compute_optimal
    assert hours is not None and hours["flops"] == pytest.approx(10 * 3600 * 400e9 * 0.5)
    given: Any = plan(LLAMA, budget_flops=12e10, machine=machine).compute_optimal
    assert given["rule"]["parameters"] == round((1e9) ** 0.5)


def test_the_table_says_it_all(machine: str) -> None:
    text = plan_table(plan(LLAMA, stage="grpo", rows_per_micro_batch=4, memory="400MB", machine=machine))
    for words in ("weights", "while in rollout", "does not fit: ", "to make it fit", "tokens/s", "A Processor"):
        assert words in text, text
    assert "rule of thumb: " in text
    long = [line for line in text.splitlines() if len(line) >= 170 and "machine.json" not in line]
    assert not long
    fitting = plan_table(plan(LLAMA, stage="pretrain", memory="100GB", fsdp_ways=2, machine=machine))
    for words in ("fits: ", "of the 100 GB given", "at most ", "on each of 2 devices (2 fsdp)", "for less memory"):
        assert words in fitting, fitting
    assert "Besiroglu" in fitting and "Hoffmann" in fitting
    lora = plan_table(plan(LLAMA, peft="lora", machine=machine))
    assert "28,672 that are added and trained by lora" in lora and "no run of this stage has tested yet" in lora
    thumb = plan_table(plan(1e9, memory="80GB", machine=machine))
    for words in ("4.00 GB   4 bytes", "24.0 GB   20 bytes more", "not 80.0 GB", "50 % less", "75 % less", "500 MB"):
        assert words in thumb, thumb
