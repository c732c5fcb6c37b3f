"""A fine-tuning run as a whole: what it leaves, that it learns, that a kill costs nothing, and what the ledger says."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.killing import kill_and_resume
from finetuning.small_runs import base_model, recipe_for
from pretraining.test_run import flat, trivium
from trivium.checkpoints.bundle import load
from trivium.checkpoints.store import CheckpointStore
from trivium.config import dump_recipe
from trivium.errors import UserError
from trivium.finetuning import run as module
from trivium.finetuning.run import finetune, resume
from trivium.models.config import Kind
from trivium.training.log import read_log, repeatable

CLOCK = {"seconds", "log_bytes"}
RESULTS = ("adapter/adapter_model.safetensors", "model/model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finetune")
    return folder, finetune(recipe_for(folder, "one"))


def test_a_run_leaves_what_the_contract_names(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    run = folder / "one"
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "summary.json", "checkpoints/step-24"):
        assert (run / name).exists(), name
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        assert (run / "adapter" / name).is_file(), name
    for key in ("run", "model", "steps", "final_loss", "tokens_per_second", "peak_bytes", "planned_peak_bytes"):
        assert summary[key], key
    assert summary["held_out"]["held_out_loss"] < summary["before"]["held_out_loss"] - 0.5
    assert summary["num_trainable_parameters"] < 0.3 * summary["num_parameters"]
    assert json.loads((run / "summary.json").read_text())["steps"] == 24


def test_the_ledger_is_in_the_log_the_summary_and_the_report(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    measured = [r for r in read_log(folder / "one" / "metrics.jsonl") if "general_bits_per_byte" in r]
    assert [record["step"] for record in measured] == [0, 12, 24]
    ledger = summary["ledger"]
    assert [point["step"] for point in ledger["points"]] == [0, 12, 24]
    assert ledger["lost"] == measured[-1]["general_bits_per_byte"] - measured[0]["general_bits_per_byte"]
    page = (folder / "one" / "report.html").read_text()
    assert "What it forgot" in page and "Gained against lost" in page and "Before it was trained" in page


def test_the_result_is_the_base_with_what_was_learned(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    base, trained = load(base_model(folder)), load(folder / "one")
    ids = torch.tensor([base.tokenizer.encode("add one and two")])
    with torch.no_grad():
        assert not torch.equal(base.model.eval()(ids), trained.model.eval()(ids))
    answer = trained.generate("add two and three", max_new_tokens=8)
    assert "sum" in answer.text or answer.tokens


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    before = (folder / "one" / RESULTS[0]).read_bytes()
    again = resume(folder / "one")
    assert (folder / "one" / RESULTS[0]).read_bytes() == before
    assert again["held_out"] == summary["held_out"] and again["samples"] == summary["samples"]


METHODS: list[tuple[Kind, dict[str, Any]]] = [
    ("decoder", {"peft": "none"}),
    ("decoder", {"peft": {"method": "last_layers", "layers": 1}}),
    ("decoder", {"peft": {"method": "houlsby", "bottleneck": 8}}),
    ("decoder", {"peft": {"method": "prompt", "virtual_tokens": 4}}),
    ("decoder", {"peft": {"method": "prefix", "virtual_tokens": 4}}),
    ("decoder", {"peft": "dora", "base": "int8"}),
    ("decoder", {"peft": "ia3", "base": "bf16"}),
    ("encoder-decoder", {"peft": {"method": "lora", "rank": 4}}),
    ("encoder-decoder", {"peft": {"method": "parallel", "bottleneck": 8}}),
]


@pytest.mark.parametrize(("kind", "changes"), METHODS, ids=lambda v: str(v.get("peft")) if isinstance(v, dict) else v)
def test_every_method_learns_and_its_result_opens(tmp_path: Path, kind: Kind, changes: dict[str, Any]) -> None:
    recipe = recipe_for(tmp_path, "run", kind, training={"steps": 12, "evaluate_every_steps": 0}, **changes)
    summary = finetune(recipe)
    assert summary["held_out"]["held_out_loss"] < summary["before"]["held_out_loss"]
    trained = load(summary["model"])
    assert trained.generate("add one and two", max_new_tokens=4).tokens


def same_runs(one: Path, two: Path) -> list[str]:
    """In what two runs differ, times aside."""
    there = [name for name in RESULTS if (one / name).exists()]
    found = [name for name in there if (one / name).read_bytes() != (two / name).read_bytes()]
    saved = [CheckpointStore(run / "checkpoints").load_latest() for run in (one, two)]
    assert saved[0] is not None and saved[1] is not None
    for stem, named in saved[0].tensors.items():
        found += [f"{stem}/{name}" for name, t in named.items() if not torch.equal(t, saved[1].tensors[stem][name])]
    kept = [{k: v for k, v in flat(each.state).items() if k.split(".")[-1] not in CLOCK} for each in saved]
    found += [key for key in kept[0] if kept[0][key] != kept[1].get(key)]
    logs = [[repeatable(record) for record in read_log(run / "metrics.jsonl")] for run in (one, two)]
    return found + ([] if logs[0] == logs[1] else ["metrics.jsonl"])


def test_killed_and_resumed_a_lora_run_ends_bit_identical(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    training = {"steps": 60, "save_every_steps": 3, "evaluate_every_steps": 30}
    path.write_text(dump_recipe(recipe_for(tmp_path, "calm", training=training)))
    finetune(path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = trivium("finetune", str(path), f"run={tmp_path / 'killed'}", "--quiet", "--json")
    torch.set_num_threads(1)
    report = kill_and_resume(command, tmp_path / "killed", 3, random.Random(4), window_s=0.3, environment=environment)
    assert report.complaints == [] and report.exit_code == 0 and len(report.kills) == 3
    assert same_runs(tmp_path / "calm", tmp_path / "killed") == []


def test_the_comparison_turns_red_when_dropout_is_drawn_anew_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: draws that depend on the process, not on the step."""
    finetune(recipe_for(tmp_path, "calm"))
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "calm", broken)
    shutil.rmtree(broken / "checkpoints" / "step-24")
    right = module.training_source

    def forgetful(*arguments: Any, **options: Any) -> Any:
        source = right(*arguments, **options)
        micro_batches: Callable[[int], Any] = source.micro_batches
        source.micro_batches = lambda step: micro_batches(step - 18)  # type: ignore[method-assign]
        return source

    monkeypatch.setattr(module, "training_source", forgetful)
    resume(broken)
    assert same_runs(tmp_path / "calm", broken) != []


def test_a_run_that_forgets_too_much_is_ended_and_stays_so(tmp_path: Path) -> None:
    recipe = recipe_for(
        tmp_path,
        "run",
        peft="none",
        training={"steps": 40, "evaluate_every_steps": 4, "learning_rate": 3e-2},
        forgetting={"max_bytes": 4000, "stop_at_loss": 0.05},
    )
    summary = finetune(recipe)
    assert 0 < summary["steps"] < 40 and summary["ledger"]["lost"] > 0.05
    events = [record["event"] for record in read_log(tmp_path / "run" / "metrics.jsonl") if "event" in record]
    assert any("forgetting.stop_at_loss" in event for event in events)
    assert resume(tmp_path / "run")["steps"] == summary["steps"]


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"peft\.method=bias trains the model's own"):
        recipe_for(tmp_path, "run", peft="bias", base="int4")
    with pytest.raises(UserError, match="start_from: there is no model"):
        finetune(recipe_for(tmp_path, "run", start_from=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="querry"):
        finetune(recipe_for(tmp_path, "run", peft={"method": "lora", "targets": ["querry"]}))
    assert not (tmp_path / "run").exists()
