"""A whole pretraining run, on real text: what it leaves, that `transformers` agrees, and that a kill costs nothing.

Model T of these tests: 4 layers of width 128, byte-level vocabulary with merges, dropout, shuffled packed documents,
accumulation over three micro-batches, a learning-rate schedule.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.killing import differences, kill_and_resume
from trivium.checkpoints.bundle import load
from trivium.checkpoints.store import CheckpointStore
from trivium.config import build_settings, dump_recipe
from trivium.data.corpus import standard_library_root
from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings
from trivium.pretraining import material
from trivium.pretraining import run as module
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.training.log import read_log, repeatable
from trivium.training.run_directory import sole_writer

MODULES = ("textwrap.py", "heapq.py", "queue.py", "shlex.py", "csv.py", "sched.py", "copy.py", "glob.py")
# What a checkpoint's state says of the clock, and of the log whose lines hold times.
CLOCK = {"seconds", "log_bytes"}


def recipe_for(folder: Path, run: str, **training: Any) -> PretrainRecipe:
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    for name in MODULES:
        shutil.copy(standard_library_root() / name, texts / name)
    return build_settings(
        PretrainRecipe,
        {
            "run": str(folder / run),
            "seed": 5,
            "device": "cpu",
            "threads": 1,
            "tokenizer": {"vocab_size": 512},
            "data": {
                "train": [str(texts)],
                "held_out_by": "tail",
                "held_out_fraction": 0.1,
                "sequence_length": 64,
                "rows_per_step": 6,
                "rows_per_micro_batch": 2,
                "evaluation_rows": 8,
                "cache_directory": str(folder / "cache"),
            },
            "model": {"width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "dropout": 0.1, "max_positions": 256},
            "training": {
                "steps": 40,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "evaluate_every_steps": 20,
                "save_every_steps": 10,
                **training,
            },
            "sample_prompts": ["def wrap(text):"],
            "sample_tokens": 16,
        },
        "test",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pretrain")
    return folder, pretrain(recipe_for(folder, "one"))


def test_a_run_leaves_what_the_contract_names(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    run = folder / "one"
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "summary.json", "checkpoints/step-40"):
        assert (run / name).exists(), name
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (run / "model" / name).is_file(), name
    for key in ("run", "model", "steps", "final_loss", "tokens_per_second", "peak_bytes", "planned_peak_bytes"):
        assert summary[key], key
    assert json.loads((run / "summary.json").read_text())["steps"] == 40
    losses = [record["loss"] for record in read_log(run / "metrics.jsonl") if "loss" in record]
    assert losses[-1] < losses[0] - 0.5
    uniform = math.log2(512) / summary["tokenizer_facts"]["bytes_per_token"]
    assert summary["held_out"]["bits_per_byte"] < 0.95 * uniform


def test_the_held_out_figure_is_that_of_the_saved_model(finished: tuple[Path, dict[str, Any]]) -> None:
    """Loaded anew and scored text by text, the saved model gives the summary's bits per byte."""
    folder, summary = finished
    bundle = load(folder / "one" / "model")
    recipe = recipe_for(folder, "one")
    from trivium.data.prepare import held_out_texts

    nll = num_bytes = 0.0
    for text in held_out_texts(recipe.data):
        if text:
            nll -= sum(token.logprob for token in bundle.logprobs(text))
            num_bytes += len(text.encode())
    assert nll / num_bytes / math.log(2) == pytest.approx(summary["held_out"]["bits_per_byte"], rel=1e-5)


def test_transformers_opens_the_model_with_equal_logits_and_text(finished: tuple[Path, dict[str, Any]]) -> None:
    transformers = pytest.importorskip("transformers")
    folder, _ = finished
    directory = folder / "one" / "model"
    bundle = load(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = (folder / "texts" / "heapq.py").read_text()[:600]
    ids = bundle.tokenizer.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    batch = torch.tensor([ids[:200]])
    with torch.no_grad():
        assert float((bundle.model.eval()(batch) - theirs(batch).logits).abs().max()) <= 1e-5
    prompt = [bundle.tokenizer.bos_id, *ids[:8]]
    assert all(isinstance(token, int) for token in prompt)
    settings = GenerationSettings(max_new_tokens=200, temperature=0.0, ignore_eos=True)
    ours = bundle.generate(prompt, settings).tokens
    generated = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=200, min_new_tokens=200, do_sample=False, eos_token_id=None
    )
    assert len(ours) == 200
    assert generated[0, len(prompt) :].tolist() == ours


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    before = (folder / "one" / "model" / "model.safetensors").read_bytes()
    again = resume(folder / "one")
    assert (folder / "one" / "model" / "model.safetensors").read_bytes() == before
    assert again["held_out"] == summary["held_out"]
    assert again["samples"] == summary["samples"]


def test_the_saved_recipe_reproduces_the_run(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    copy = (folder / "one" / "recipe.yaml").read_text().replace(str(folder / "one"), str(folder / "two"))
    path = folder / "copy.yaml"
    path.write_text(copy)
    other = pretrain(path)
    assert same_runs(folder / "one", folder / "two") == []
    assert other["held_out"] == summary["held_out"]


def test_a_directory_with_another_run_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    with pytest.raises(UserError, match=r"differs in: training.*trivium resume"):
        pretrain(recipe_for(folder, "one", learning_rate=1e-4))
    with pytest.raises(UserError, match="holds no run"):
        pretrain(recipe_for(folder, "texts"))
    with pytest.raises(UserError, match="not a run directory"):
        resume(folder / "texts")


def test_a_run_that_could_not_begin_leaves_nothing_and_a_finished_one_stands(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise UserError("the text is gone")

    monkeypatch.setattr(module, "prepare_material", refuse)
    before = (folder / "one" / "summary.json").read_bytes()
    for run in ("one", "never"):
        with pytest.raises(UserError, match="the text is gone"):
            pretrain(recipe_for(folder, run))
    assert (folder / "one" / "summary.json").read_bytes() == before
    assert not (folder / "never").exists()


def test_a_model_is_not_written_over_something_else(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    bundle = load(folder / "one")
    before = sorted(path.name for path in (folder / "texts").iterdir())
    with pytest.raises(UserError, match="holds no model"):
        bundle.save(folder / "texts")
    assert sorted(path.name for path in (folder / "texts").iterdir()) == before
    bundle.save(folder / "one" / "model")  # a model may be replaced
    assert load(folder / "one").config == bundle.config


def test_two_processes_cannot_write_one_run(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    with sole_writer(folder / "one"), pytest.raises(UserError, match="another process"):
        resume(folder / "one")


def same_runs(one: Path, two: Path) -> list[str]:
    """In what two runs differ, times aside."""
    found = [name for name in differences(one, two, files=["model/model.safetensors"]) if name != "state.json"]
    states = [CheckpointStore(run / "checkpoints").load_latest() for run in (one, two)]
    kept = [{k: v for k, v in flat(s.state if s else {}).items() if k.split(".")[-1] not in CLOCK} for s in states]
    found += [key for key in kept[0] if kept[0][key] != kept[1].get(key)]
    logs = [[repeatable(record) for record in read_log(run / "metrics.jsonl")] for run in (one, two)]
    return found + ([] if logs[0] == logs[1] else ["metrics.jsonl"])


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}").items()}


def trivium(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trivium", *arguments]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("kills")
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe_for(folder, "calm", steps=110, save_every_steps=3, evaluate_every_steps=50)))
    pretrain(path)
    return folder, path


def test_killed_ten_times_a_pretraining_run_ends_bit_identical(undisturbed: tuple[Path, Path]) -> None:
    folder, path = undisturbed
    command = trivium("pretrain", str(path), f"run={folder / 'killed'}", "--quiet", "--json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    report = kill_and_resume(command, folder / "killed", 10, random.Random(3), window_s=0.3, environment=environment)
    assert report.complaints == []
    assert report.exit_code == 0
    assert len(report.kills) == 10
    assert report.inside_saves >= 0.3
    assert same_runs(folder / "calm", folder / "killed") == []


def test_the_comparison_turns_red_when_the_order_of_the_data_depends_on_the_restart(
    undisturbed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: a source that begins anew after a resume, as half of the field's trainers did."""
    folder, _ = undisturbed
    broken = folder / "broken"
    shutil.copytree(folder / "calm", broken)
    steps = CheckpointStore(broken / "checkpoints").steps()
    shutil.rmtree(broken / "checkpoints" / f"step-{steps[-1]}")
    right = material.training_source

    def forgetful(*arguments: Any, **options: Any) -> Any:
        source = right(*arguments, **options)
        micro_batches = source.micro_batches
        source.micro_batches = lambda step: micro_batches(step - steps[-2])
        return source

    monkeypatch.setattr(material, "training_source", forgetful)
    resume(broken)
    assert same_runs(folder / "calm", broken) != []
