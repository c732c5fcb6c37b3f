"""`trivium quickstart`: the whole of it as a newcomer meets it, then its stages on a small text."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.test_history import Notes
from pretraining.small_runs import finished
from pretraining.test_run import MODULES
from trivium.checkpoints.bundle import load
from trivium.checkpoints.store import CheckpointStore
from trivium.config import load_recipe
from trivium.data.corpus import standard_library_root
from trivium.data.settings import DataSettings
from trivium.errors import UserError
from trivium.planner import statement
from trivium.pretraining.recipe import PretrainRecipe
from trivium.progress import SILENT
from trivium.quickstart import pretraining as module
from trivium.quickstart import state as state_module
from trivium.quickstart.classifier import labelled_functions, same_steps
from trivium.quickstart.pretraining import MIN_STEPS, PROMPTS, choose_size, choose_steps, learn_tokenizer
from trivium.quickstart.run import quickstart
from trivium.quickstart.state import Quickstart

# Sizes in the plan that are no parts of the peak.
WHOLES = ("peak_bytes", "available_bytes", "tensors_bytes")
REPOSITORY = Path(__file__).resolve().parents[2]


# As a newcomer meets it: real processes, the real text


def command(folder: Path, minutes: str) -> subprocess.CompletedProcess[str]:
    """`trivium quickstart`, with the cache of tokenized text in `folder`."""
    words = ["quickstart", "--minutes", minutes, "--out", str(folder / "quickstart"), "--json"]
    return finished(["env", f"XDG_CACHE_HOME={folder / 'cache'}", sys.executable, "-m", "trivium", *words])


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the half-minute quickstart was run, and the JSON it printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    done = command(folder, "0.5")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return folder, json.loads(line)


def test_it_leaves_a_measured_model_and_a_report(newcomer: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = newcomer
    out = folder / "quickstart"
    assert summary["run"] == str(out / "pretrain") and summary["model"] == str(out / "pretrain" / "model")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (Path(summary["model"]) / name).is_file(), name
    assert Path(summary["report"]).read_text().startswith("<!DOCTYPE html>")
    assert summary["steps"] >= MIN_STEPS and 0 < summary["seconds"] < 600
    assert 0 < summary["held_out"]["bits_per_byte"] < 4 and summary["held_out"]["num_bytes"] > 100_000
    assert set(summary["baselines"]) == {"unigram_bits_per_byte", "xz_bits_per_byte"}
    assert [sample["prompt"] for sample in summary["samples"]] == PROMPTS["decoder"]
    assert all(sample["text"] for sample in summary["samples"])
    assert {"text", "tokenizer", "model", "training", "memory", "held-out text", "time"} <= set(summary["table"])


def test_it_begins_with_the_plan(newcomer: tuple[Path, dict[str, Any]]) -> None:
    _, summary = newcomer
    plan, rows = summary["plan"], list(summary["table"])
    parts = [size for name, size in plan.items() if name.endswith("_bytes") and name not in WHOLES]
    assert sum(parts) == plan["peak_bytes"] < plan["available_bytes"]
    # The plan before anything was learned, and that of pretraining when its turn had come.
    assert plan["peak_bytes"] == pytest.approx(summary["planned_peak_bytes"], rel=0.1)
    assert plan["hours"] > 0
    assert rows[0] == "planned memory" and "planned time" in rows and rows.index("planned time") < rows.index("text")
    assert summary["peak_bytes"] == pytest.approx(summary["planned_peak_bytes"], rel=0.2)


def test_it_ends_with_a_packed_model_and_its_measured_cost(newcomer: tuple[Path, dict[str, Any]]) -> None:
    _, summary = newcomer
    cost = summary["int8"]
    assert cost["scheme"]["format"] == "int8" and cost["bytes"]["share"] < 0.3
    assert abs(cost["quality"]["perplexity_change"]) < 0.01 < cost["quality"]["agreement"]
    low, high = cost["quality"]["perplexity_interval"]
    assert low <= cost["quality"]["perplexity_change"] <= high
    assert {"reading", "writing"} == set(cost["speed"])
    assert {"int8 model", "  perplexity", "  bits per byte", "  writing"} <= set(summary["table"])
    # What is said is what is there: the summary and the page of the run say it too, and the model is the packed one.
    saved = json.loads((Path(summary["run"]) / "summary.json").read_text())
    assert saved["compression"]["bytes"] == cost["bytes"]
    assert "The model in fewer bits (int8)" in Path(summary["report"]).read_text()
    original, packed = load(summary["model"]), load(cost["model"])
    ids = torch.tensor([original.tokenizer.encode("import os\nimport sys\n")])
    away = (original.model(ids) - packed.model(ids)).abs().max()
    assert 0 < away < 0.1 * original.model(ids).std()


def test_the_commands_it_proposes_work(newcomer: tuple[Path, dict[str, Any]]) -> None:
    _, summary = newcomer
    generate, metric, longer, chat, packed = (shlex.split(proposed) for proposed in summary["next"])
    assert chat[1] == "chat" and chat[2] == summary["instruct"]["model"]
    for words, key in ((generate, "text"), (metric, "bits_per_byte"), (packed, "text")):
        assert words[0] == "trivium"
        done = finished([sys.executable, "-m", *words, "--json"], cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[key]
    assert longer[:2] == ["trivium", "pretrain"]
    recipe = load_recipe(PretrainRecipe, Path(longer[2]), longer[3:])
    assert recipe.training.steps == 4 * summary["steps"] and recipe.run != summary["run"]


def test_given_again_it_finds_all_done(newcomer: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = newcomer
    weights = (Path(summary["model"]) / "model.safetensors").read_bytes()
    done = command(folder, "0.5")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert (Path(again["model"]) / "model.safetensors").read_bytes() == weights
    same = ("run", "steps", "final_loss", "held_out", "baselines", "samples", "next")
    assert {key: again[key] for key in same} == {key: summary[key] for key in same}


def test_other_orders_for_the_same_place_are_refused(newcomer: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = newcomer
    done = command(folder, "0.75")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("trivium: ")
        and "of 0.5 minutes for --family decoder, not of 0.75 for decoder" in line
        and "another --out" in line
    )


# Its stages, on a small text


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quickstart of a second or two: eight modules instead of the whole library."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in MODULES:
        shutil.copy(standard_library_root() / name, texts / name)
    data = DataSettings(
        train=str(texts),  # type: ignore[arg-type]
        held_out_by="tail",
        held_out_fraction=0.1,
        sequence_length=32,
        rows_per_step=4,
        rows_per_micro_batch=2,
        evaluation_rows=4,
        cache_directory=str(tmp_path / "cache"),
    )
    monkeypatch.setattr(state_module, "data_settings", lambda kind: data)
    monkeypatch.setattr(module, "VOCABULARY", 512)
    monkeypatch.setitem(module.PROMPTS, "decoder", ["import "])
    return tmp_path


def state_of(folder: Path, minutes: float) -> Quickstart:
    return Quickstart(folder / "out", minutes, "decoder", SILENT, time.perf_counter())


def test_the_steps_fill_the_time_and_leave_room_for_the_rest(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_steps", lambda *given: 0.5)
    planned = {}
    for minutes in (0.2, 2.0, 20.0):
        state = state_of(small, minutes)
        choose_size(state)
        state.tokens = 10_000_000
        choose_steps(state)
        assert state.recipe is not None
        planned[minutes] = 0.5 * state.recipe.training.steps
        evaluations = state.recipe.training.steps // state.recipe.training.evaluate_every_steps
        if state.recipe.training.steps > MIN_STEPS:
            assert 0.5 * 60 * minutes < planned[minutes] < 0.75 * 60 * minutes - 9  # a quarter is the later stage's
        assert 8 <= evaluations <= 10
    assert planned[0.2] == MIN_STEPS * 0.5 and planned[0.2] < planned[2.0] < planned[20.0] / 8


def test_a_fast_machine_ends_early_instead_of_overfitting(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_steps", lambda *given: 0.01)
    state = state_of(small, 20.0)
    choose_size(state)
    state.tokens = 4000
    choose_steps(state)
    assert state.recipe is not None
    assert state.recipe.training.steps == module.MOST_EPOCHS["decoder"] * 4000 // (4 * 32)


def test_what_the_first_stages_learned_is_not_learned_again(small: Path) -> None:
    state = state_of(small, 0.2)
    learn_tokenizer(state)
    path = state.out / "tokenizer" / "tokenizer.json"
    written = path.stat().st_mtime_ns
    assert state.table["tokenizer"].startswith("512 entries, ") and state.table["text"].startswith("8 modules")
    learn_tokenizer(state)
    assert path.stat().st_mtime_ns == written


def test_the_commands_it_proposes_work_from_any_folder_in_a_shell(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = quickstart(small / "a folder", minutes=0.2)
    monkeypatch.chdir("/")
    generate, metric, longer, chat, packed = (shlex.split(proposed) for proposed in summary["next"])
    assert (
        Path(chat[2]).is_dir()
        and generate[2] == metric[3] == summary["model"]
        and packed[2] == summary["int8"]["model"]
    )
    assert Path(metric[5]).is_file() and Path(longer[2]).is_file()


def test_broken_off_it_goes_on_and_ends_the_same(small: Path) -> None:
    whole = quickstart(small / "whole", minutes=0.2)
    assert whole["steps"] == MIN_STEPS and len(whole["samples"]) == 1
    broken = small / "broken"
    shutil.copytree(small / "whole", broken)
    recipe = (broken / "pretrain" / "recipe.yaml").read_text()
    (broken / "pretrain" / "recipe.yaml").write_text(recipe.replace(str(small / "whole"), str(broken)))
    run = broken / "pretrain"
    for step in CheckpointStore(run / "checkpoints").steps()[1:]:
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    again = quickstart(broken, minutes=0.2)
    for key in ("steps", "final_loss", "held_out", "baselines", "samples"):
        assert again[key] == whole[key], key
    models = [path / "pretrain" / "model" / "model.safetensors" for path in (small / "whole", broken)]
    assert models[0].read_bytes() == models[1].read_bytes()


@pytest.mark.parametrize("family", ["encoder", "encoder-decoder"])
def test_other_kinds_end_with_what_they_are_for(small: Path, family: str) -> None:
    """A mask filled in held-out text and a classifier, or docstrings scored by ROUGE; nothing is done twice."""
    summary = quickstart(small / "out", minutes=0.2, family=family)
    table = summary["table"]
    if family == "encoder":
        assert 0 <= summary["held_out"]["masked_accuracy"] <= 1 and "perplexity" not in summary["held_out"]
        found = summary["classifier"]
        assert len(found["labels"]) >= 2 and 0 <= found["accuracy"] <= 1 and found["num_examples"] >= 20
        assert load(found["model"]).classify("def f(): pass").label in found["labels"]
        assert "classifier" in table and "held-out masks" in table and "becomes" in table["for example"]
    else:
        found = summary["summaries"]
        scores = {f"{kind}_{way}" for kind in ("rouge1", "rouge2", "rougeL") for way in ("greedy", "beam")}
        assert scores <= set(found["held_out"]) and 0 < found["name_baseline"]["rouge1"] < 1
        assert "docstrings" in table and "its author wrote" in table["for example"]
    weights = (Path(found["model"]) / "model.safetensors").read_bytes()
    again = quickstart(small / "out", minutes=0.2, family=family)
    assert (Path(found["model"]) / "model.safetensors").read_bytes() == weights
    assert again["next"] == summary["next"] and again["int8"] == summary["int8"]
    assert next(iter(table)) == "planned memory" and summary["int8"]["bytes"]["share"] < 0.35
    assert any("perplexity" in row for row in table) and load(summary["int8"]["model"]).config.kind == family
    for proposed in map(shlex.split, summary["next"]):
        assert proposed[0] == "trivium" and proposed[1] in ("fill-mask", "classify", "seq2seq", "pretrain")


def test_a_classifier_that_was_broken_off_keeps_its_steps(tmp_path: Path) -> None:
    """They decide the whole schedule, and the time left is another when it is started again."""
    assert same_steps(tmp_path / "run", 40) == 40
    assert same_steps(tmp_path / "run", 7) == 40
    assert same_steps(tmp_path / "other", 7) == 7


def test_the_classes_are_packages_on_both_sides_of_the_split() -> None:
    trained, held_out, labels = labelled_functions()
    counts = [Counter(text.label for text in side) for side in (trained, held_out)]
    assert len(labels) >= 3 and all(
        counts[0][number] >= 40 and counts[1][number] >= 10 for number in range(len(labels))
    )
    assert not {text.text for text in trained} & {text.text for text in held_out if len(text.text) > 200}


def test_what_cannot_fit_is_refused_before_anything_is_written(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statement, "available_bytes", lambda device="cpu": 1 << 20)
    before, notes = sorted(small.rglob("*")), Notes()
    with pytest.raises(
        UserError, match=r"this quickstart needs .* nothing was begun.* fewer --minutes.* --ignore-plan$"
    ):
        quickstart(small / "out", 0.2, progress=notes)
    (first,) = notes.lines
    assert first.startswith("planned memory: ") and sorted(small.rglob("*")) == before
    # The control: told to go on it does, and every run of it says so.
    assert quickstart(small / "out", 0.2, progress=notes, ignore_plan=True)["steps"] == MIN_STEPS
    assert sum("going on, as told by" in line for line in notes.lines) == 3


def test_what_it_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such kind of model; did you mean encoder"):
        quickstart(tmp_path / "out", family="encodr")
    for minutes in (0.1, float("nan"), -5.0, 1e6):
        with pytest.raises(UserError, match=r"give between 0\.2 minutes and a week"):
            quickstart(tmp_path / "out", minutes=minutes)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no quickstart"):
        quickstart(tmp_path, minutes=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
