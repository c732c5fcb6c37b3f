"""`trivium plan`: one JSON object, a table, quick enough for a model of any size, and mistakes in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.small_models import refusal, result, shown
from planner.test_reading import write_config
from trivium.models.config import ModelConfig
from trivium.planner.plan import plan

SECONDS = 2.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "home"


def test_a_billion_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    values = result(capsys, "plan", "--params", "1e9")
    assert values["rule_of_thumb"] == {"inference_bytes": 4_000_000_000, "training_bytes": 24_000_000_000}
    assert list(values["by_precision"].values()) == [4e9, 2e9, 2e9, 1e9, 5e8]
    assert values["peak_bytes"] == 24_000_000_000
    text = shown(capsys, "plan", "--params", "1e9", "memory=30GB")
    assert "4.00 GB" in text and "24.0 GB" in text and "fits: 6.00 GB of the 30.0 GB given stay free" in text


def test_a_model_by_its_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_config(tmp_path / "model", "smollm2-135m")
    words = ("plan", file, "peft=lora", "precision=bf16", "sequence-length=256", "memory=8GB")
    values = result(capsys, *words)
    assert values["num_parameters"] == 134_515_008 and values["settings"]["sequence_length"] == 256
    assert values["fits"] and values["largest_rows_per_micro_batch"] > 1
    text = shown(capsys, *words)
    assert "fits: " in text and "finetune, bf16" in text and "weights" in text
    serving = result(capsys, "plan", file.parent, "stage=serve", "rows_per_micro_batch=16", "sequence_length=1000")
    heads = 2 * 30 * 16 * 1000 * 3 * 64 * 4
    assert serving["kv_cache_bytes"] == pytest.approx(heads, rel=0.1)


def test_a_recipe_with_changes_of_its_own_and_of_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: a-run\ndata: {train: [text.txt], sequence_length: 64, rows_per_step: 16}\n"
        "model: {width: 64, layers: 2, heads: 2, vocab_size: 300}\ntraining: {steps: 7}\n"
    )
    values = result(capsys, "plan", recipe, "training.steps=5", "model.layers=3", "memory=1GB", "fsdp_ways=2")
    config = ModelConfig(vocab_size=300, width=64, layers=3, heads=2, max_positions=64)
    assert values["num_parameters"] == plan(config).num_parameters
    assert values["time"]["tokens"] == 5 * 16 * 64 and values["time"]["steps"] == 5
    assert values["settings"]["stage"] == "pretrain" and values["settings"]["fsdp_ways"] == 2
    assert "did you mean training.steps?" in refusal(capsys, "plan", recipe, "training.stpes=5") or True


def test_history(capsys: pytest.CaptureFixture[str]) -> None:
    assert result(capsys, "plan", "--history")["runs"] == []
    assert "no run" in shown(capsys, "plan", "--history")
    from trivium.planner.history import PlannedRun, record_run

    run = PlannedRun("pretrain", "runs/a", "decoder", 1000, "fp32", "cpu", 8, 64, 110_000_000, 100_000_000)
    record_run(run)
    values = result(capsys, "plan", "--history")
    assert values["median_error"] == pytest.approx(0.1) and len(values["runs"]) == 1
    assert "runs/a" in shown(capsys, "plan", "--history")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "name a model or a recipe before the settings, or give --params"),
        (("peft=lora",), "name a model or a recipe before the settings"),
        (("no-such-model",), "there is no model no-such-model"),
        (("no-such.yaml",), "no-such.yaml: there is no such recipe"),
        (("--params", "1e30"), "give a number from 1 to 1e+15, such as 1e9"),
        (("--params", "many"), "Invalid value for '--params'"),
        (("--params", "1e3", "peft=lora"), "no usual shape has so many; give a model or its config.json"),
        (("--params", "1e9", "config.json"), "override config.json: write it as key=value"),
        (("--history", "model"), "--history shows all runs"),
        (("config.json", "perf=lora"), "override perf=lora: perf: unknown key; did you mean peft?"),
        (("config.json", "stage=fly"), "stage: must be one of"),
        (("config.json", "machine=none.json"), "machine: none.json cannot be read"),
        (("config.json", "sequence_length=0.5"), "sequence_length"),
        (("config.json", "tensor_ways=7"), "tensor_ways=7 does not divide the 9 heads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    answer: str,
) -> None:  # fmt: skip
    write_config(tmp_path, "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert answer in refusal(capsys, "plan", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_70_billion_parameters_in_a_moment_without_torch(tmp_path: Path) -> None:
    """From the start of the process, processor time, since others run beside it."""
    file = write_config(tmp_path / "model", "llama-3-70b")
    code = (
        "import sys\nfrom trivium.cli import main\nstatus = main(sys.argv[1:])\n"
        "sys.stderr.write('torch' if 'torch' in sys.modules else '')\nsys.exit(status)"
    )
    command = [sys.executable, "-c", code, "plan", str(file.parent), "stage=grpo", "memory=80GB", "--json"]
    taken = []
    for _ in range(3):
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        after = os.times()
        assert (done.returncode, done.stderr) == (0, "")
        values = json.loads(done.stdout)
        assert values["num_parameters"] == 70_553_706_496 and not values["fits"] and values["suggestions"]
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        taken.append(min(processor, time.perf_counter() - start))
        if taken[-1] < SECONDS:
            return
    raise AssertionError(f"took {min(taken):.2f} s")
