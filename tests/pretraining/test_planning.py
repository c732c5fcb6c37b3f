"""A run says what it needs, is refused where that cannot fit, and keeps what it measured beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.test_history import Notes
from pretraining.small_runs import WITH_SMALL_MEMORY, finished
from pretraining.test_run import recipe_for
from trivium.cli import main
from trivium.config import build_settings, dump_recipe
from trivium.data.examples import ExampleRows, longest_text
from trivium.data.marks import marks_of
from trivium.data.tasks import build_task
from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.planner import statement
from trivium.planner.history import history_report
from trivium.pretraining.planning import planned_memory, target_length
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain
from trivium.progress import short_bytes
from trivium.tokenizer.bpe import Tokenizer

# 70e9 parameters: no machine that runs tests trains them.
LARGE = {"width": 8192, "layers": 80, "heads": 64, "mlp_width": 28672, "vocab_size": 32000}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))


def large(folder: Path, **more: Any) -> PretrainRecipe:
    small = recipe_for(folder, "run")
    model = {**LARGE, "max_positions": 2048}
    data = {**small.data.model_dump(), "sequence_length": 2048, "rows_per_micro_batch": 6}
    values = {**small.model_dump(exclude={"model", "data", "tokenizer"}), "model": model, "data": data}
    return build_settings(PretrainRecipe, {**values, **more}, "test")


def test_what_cannot_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(UserError) as refused:
        pretrain(large(tmp_path), notes)
    text = str(refused.value)
    assert "nothing was begun" in text and "ignore_plan=true" in text
    assert "training.gradient_checkpointing=true" in text or "data.rows_per_micro_batch=1" in text
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    (line,) = notes.lines
    assert line.startswith("planned memory: ")
    assert history_report()["runs"] == []


@pytest.mark.parametrize("verb", ["pretrain", "resume"])
def test_no_text_is_read_before_the_plan_fits(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    recipe = run / "recipe.yaml" if verb == "resume" else tmp_path / "recipe.yaml"
    values = large(tmp_path, tokenizer={"path": str(tmp_path / "no-tokenizer")}).model_dump(mode="json")
    values["data"] |= {"train": [str(tmp_path / "no-text.txt")]}
    write_atomically(recipe, json.dumps(values))
    before = sorted(tmp_path.rglob("*"))
    command = [verb, str(run if verb == "resume" else recipe)]
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and "nothing was begun" in said.err and sorted(tmp_path.rglob("*")) == before
    # The control: told to go on, it comes to what is not there.
    assert main([*command, "--ignore-plan"]) == 2
    said = capsys.readouterr()
    assert "no-tokenizer" in said.err and "nothing was begun" not in said.err


def test_a_process_that_may_not_take_so_much_is_told(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "run", steps=1)
    write_atomically(tmp_path / "recipe.yaml", dump_recipe(recipe))

    def process(room: int) -> str:
        words = ["pretrain", str(tmp_path / "recipe.yaml"), f"data.train={tmp_path / 'no-text.txt'}"]
        done = finished([sys.executable, "-c", WITH_SMALL_MEMORY, str(room), *words])
        assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
        return done.stderr

    assert "nothing was begun" in process(50_000_000)
    assert "no-text.txt" in process(2_000_000_000)  # the control: with more room it begins


def test_unless_told_otherwise_it_runs_and_the_pair_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, notes = recipe_for(tmp_path, "run", steps=2), Notes()
    monkeypatch.setattr(statement, "available_bytes", lambda device="cpu": 1 << 20)
    with pytest.raises(UserError, match="nothing was begun"):
        pretrain(recipe)
    summary = pretrain(recipe, notes, ignore_plan=True)
    assert notes.lines[0].startswith("planned memory: ") and "going on, as told by" in notes.lines[1]
    (run,) = history_report()["runs"]
    assert (run["planned_bytes"], run["peak_bytes"]) == (summary["planned_peak_bytes"], summary["peak_bytes"])
    assert short_bytes(run["planned_bytes"]) in notes.lines[0]  # the plan that was stated
    assert (run["stage"], run["rows"], run["length"], run["kind"]) == ("pretrain", 2, 64, "decoder")
    # Told by the recipe it is no other run; measured once, it is not counted again.
    again = pretrain(recipe.model_copy(update={"ignore_plan": True}))
    assert again["peak_bytes"] == summary["peak_bytes"] and len(history_report()["runs"]) == 1


def test_the_parts_of_an_objective_count(tmp_path: Path) -> None:
    def peak(**sections: Any) -> int:
        values = recipe_for(tmp_path, "run").model_dump(exclude={"model", "objective"})
        shape = {"width": 128, "layers": 2, "heads": 4, "vocab_size": 512}
        recipe = {**values, **sections, "model": {**shape, **sections["model"]}}
        return planned_memory(build_settings(PretrainRecipe, recipe, "test")).tensors_bytes

    masked = [
        peak(model={"kind": "encoder", "vocab_size": 65536}, objective={"name": "masked", "mask_share": share})
        for share in (0.15, 0.9)
    ]
    assert masked[0] < masked[1]
    spans, pairs = (peak(model={"kind": "encoder-decoder"}, objective={"name": name}) for name in ("spans", "denoise"))
    assert spans < pairs  # the target of spans is short


@pytest.mark.parametrize(("noise_share", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0)])
def test_the_target_length_is_that_of_the_rows(noise_share: float, mean_span: float, tmp_path: Path) -> None:
    objective = {"name": "spans", "noise_share": noise_share, "mean_span": mean_span}
    values = {
        **recipe_for(tmp_path, "run").model_dump(exclude={"model", "objective"}),
        "objective": objective,
        "model": {"kind": "encoder-decoder", "width": 32, "layers": 2, "heads": 2},
    }
    values["data"]["sequence_length"] = 512
    recipe = build_settings(PretrainRecipe, values, "test")
    tokenizer = Tokenizer.train(texts=["a text of words"], vocab_size=400, kind="encoder-decoder")
    task = build_task(recipe.objective, marks_of(tokenizer, recipe.objective, 0))
    longest = longest_text(task, 512)

    class Full:
        rooms = np.array([[task.room(longest).source, task.room(longest).target]] * 3)

        def example(self, number: int, draw: np.random.Generator) -> Any: ...

    rows = ExampleRows(Full(), 512, seed=0)
    assert rows.widest.source <= 512
    assert target_length(recipe) == pytest.approx(rows.widest.target, abs=4)
