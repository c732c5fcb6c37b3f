"""How whole runs end, as real processes: by signals (R6), a damaged checkpoint (R4), numbers that are none (R10), a
disk that takes no more (R5). Whatever it was, the last good checkpoint stands, and the run that goes on from it ends in
the bytes of the run that was left in peace.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from checkpoints.killing import Attempt
from pretraining.small_runs import ENVIRONMENT, PATIENCE_S, as_left_at, finished, losses, with_disk_full_at
from pretraining.test_run import recipe_for, same_runs, trivium
from training.small import fails, same_bits
from trivium.checkpoints import manifest
from trivium.checkpoints.store import CheckpointStore
from trivium.config import dump_recipe, load_recipe
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume

STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `recipe.yaml`, and in `calm` the run that nothing happened to."""
    path = tmp_path_factory.mktemp("ends")
    recipe = recipe_for(path, "calm", steps=STEPS, save_every_steps=20, evaluate_every_steps=25, keep_checkpoints=9)
    (path / "recipe.yaml").write_text(dump_recipe(recipe))
    pretrain(recipe)
    return path


def begin(folder: Path, name: str, *overrides: str) -> list[str]:
    return trivium("pretrain", str(folder / "recipe.yaml"), f"run={folder / name}", "--json", *overrides)


def attempt(command: Sequence[str], run: Path) -> Attempt:
    """A process of a run; what it says is appended to `<run>.log`."""
    return Attempt(command, run, run.with_name(run.name + ".log"), ENVIRONMENT)


def frozen(process: Attempt, run: Path, new_steps: int, seconds: float) -> int:
    """Let a process train until its log has so many new steps, and freeze it a moment later; the steps logged."""
    deadline = time.monotonic() + PATIENCE_S
    process.wait_until(process.trains, deadline)
    wanted = len(losses(run)) + new_steps
    process.wait_until(lambda: len(losses(run)) >= wanted, deadline)
    time.sleep(seconds)
    assert process.stop(), "the run ended by itself"
    return len(losses(run))


def end(process: Attempt, *signals: int) -> int:
    """Send signals to a frozen process, wake it, and wait for its exit code."""
    for number in signals:
        os.killpg(process.process.pid, number)
    os.killpg(process.process.pid, signal.SIGCONT)
    return process.process.wait(PATIENCE_S)


def ours(text: str) -> list[str]:
    """The lines in which the command says why it ended."""
    return [line for line in text.splitlines() if line.startswith("trivium: ")]


def assert_ends_as_the_calm_one(folder: Path, run: Path) -> None:
    assert same_runs(folder / "calm", run) == []
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder / "calm", run)]
    assert summaries[0]["held_out"] == summaries[1]["held_out"]
    assert all(re.fullmatch(r"step-\d+", path.name) for path in (run / "checkpoints").iterdir())
    assert list(run.glob(".tmp-*")) == []


# R6: signals


def interrupted_again_and_again(folder: Path, name: str, count: int, seed: int) -> None:
    """End a run `count` times by SIGTERM or SIGINT at random moments, and let it end by itself at last."""
    run, draw = folder / name, random.Random(seed)
    command = begin(folder, name)
    numbers = [signal.SIGTERM, signal.SIGINT, *draw.choices([signal.SIGTERM, signal.SIGINT], k=count - 2)]
    most_steps = STEPS // count - 1
    for number in numbers:
        process = attempt(command, run)
        logged = frozen(process, run, draw.randrange(most_steps), draw.uniform(0, 0.1))
        woken = time.monotonic()
        assert end(process, number) == 128 + number
        saved = CheckpointStore(run / "checkpoints").steps()[-1]
        print(f"{number.name} after step {logged}: saved step {saved} and ended in {time.monotonic() - woken:.2f} s")
        assert saved in (logged, logged + 1), "the step in progress is finished, and no other one begun"
        said = ours(run.with_name(name + ".log").read_text())
        assert said[-1] == f"trivium: ended by {number.name} after step {saved}; `trivium resume` goes on from there"
        command = trivium("resume", str(run), "--json")
    assert len(ours(run.with_name(name + ".log").read_text())) == count
    done = finished(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == STEPS


def test_signals_at_random_moments_cost_nothing(folder: Path) -> None:
    interrupted_again_and_again(folder, "interrupted", 6, seed=1)
    assert_ends_as_the_calm_one(folder, folder / "interrupted")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_signals_at_random_moments_cost_nothing(folder: Path, seed: int) -> None:
    interrupted_again_and_again(folder, f"interrupted-{seed}", 10, seed)
    assert_ends_as_the_calm_one(folder, folder / f"interrupted-{seed}")


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    """Control: the first signal alone would have left a checkpoint of the step in progress, as above."""
    run = folder / "twice"
    process = attempt(begin(folder, "twice", "training.save_every_steps=0"), run)
    logged = frozen(process, run, 2, 0.0)
    assert end(process, signal.SIGTERM, signal.SIGINT) in (143, 130)
    assert CheckpointStore(run / "checkpoints").steps() == [] and len(losses(run)) == logged
    assert ours(run.with_name("twice.log").read_text()) == []


@pytest.mark.parametrize(("name", "sign"), [("early", "tokenizer/tokenizer.json"), ("late", "model/config.json")])
def test_a_signal_outside_the_training_ends_it_and_costs_nothing(folder: Path, name: str, sign: str) -> None:
    """Before the first step and after the last there is nothing to save: the signal does what it does by itself."""
    run = folder / name
    if name == "late":
        as_left_at(folder / "calm", run, STEPS)
    process = attempt(begin(folder, name) if name == "early" else trivium("resume", str(run), "--json"), run)
    process.wait_until((run / sign).exists, time.monotonic() + PATIENCE_S)
    assert process.stop()
    assert end(process, signal.SIGTERM) == -signal.SIGTERM
    assert not (run / "summary.json").exists()
    pretrain(load_recipe(PretrainRecipe, folder / "recipe.yaml", [f"run={run}"]))
    assert_ends_as_the_calm_one(folder, run)


def test_what_a_kill_left_beside_the_checkpoints_is_no_hindrance_and_is_removed(folder: Path) -> None:
    """A kill while the recipe is written leaves a directory without one; a kill while the model is saved, a second."""
    begun = folder / "begun"
    begun.mkdir()
    (begun / ".tmp-recipe.yaml-0123abcd").write_text("run: ")
    pretrain(load_recipe(PretrainRecipe, folder / "recipe.yaml", [f"run={begun}", "training.steps=1"]))
    run = as_left_at(folder / "calm", folder / "littered", STEPS)
    (run / ".tmp-model-0123abcd").mkdir()
    (run / ".tmp-model-0123abcd" / "model.safetensors").write_bytes(bytes(1000))
    resume(run)
    assert_ends_as_the_calm_one(folder, run)
    assert list(begun.glob(".tmp-*")) == []


# R4: a damaged checkpoint


def flip_a_bit_of_the_newest(run: Path) -> Path:
    """Flip one bit in the middle of the newest checkpoint's weights."""
    checkpoints = CheckpointStore(run / "checkpoints")
    path = checkpoints.directory / f"step-{checkpoints.steps()[-1]}" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 3
    path.write_bytes(data)
    return path.parent


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(folder: Path) -> None:
    run = as_left_at(folder / "calm", folder / "bitten", 40)
    damaged = flip_a_bit_of_the_newest(run)
    done = finished(trivium("resume", str(run), "--json"))
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "damaged" in line]
    assert told.startswith(f"checkpoint passed over: {damaged} is damaged: model.safetensors does not have the SHA-256")
    assert json.loads(done.stdout)["steps"] == STEPS
    assert_ends_as_the_calm_one(folder, run)


def test_control_a_store_that_does_not_look_trains_on_with_the_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = as_left_at(folder / "calm", folder / "unnoticed", 40)
    flip_a_bit_of_the_newest(run)

    def unchecked(directory: int, name: str, entry: manifest.Entry, keep: bool = True) -> memoryview:
        with manifest._file(directory, name) as descriptor:
            return memoryview(bytearray(os.read(descriptor, 1 << 30)))

    monkeypatch.setattr(manifest, "_read", unchecked)
    resume(run)
    monkeypatch.undo()
    assert fails(lambda: assert_ends_as_the_calm_one(folder, run))


# R10: numbers that are none


def test_a_run_that_diverges_ends_with_one_line_and_its_last_good_checkpoint(folder: Path) -> None:
    run = folder / "diverged"
    huge = ["training.learning_rate=1e4", "training.schedule=constant", "training.save_every_steps=1"]
    done = finished(begin(folder, "diverged", *huge))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (told,) = ours(done.stderr)
    match = re.fullmatch(r"trivium: step (\d+) left out: the (?:loss|gradient norm) is (?:nan|inf); nothing .*", told)
    assert match and "the last checkpoint stands: lower training.learning_rate" in told, told
    good = int(match[1]) - 1
    assert good >= 1 and not (run / "model").exists()
    newest = CheckpointStore(run / "checkpoints").load_latest()
    assert newest is not None and newest.step == good
    # The same run, had it been that short, has the same weights and moments: the step that failed left no trace.
    short = [f"run={folder / 'short'}", f"training.steps={good}", *huge]
    pretrain(load_recipe(PretrainRecipe, folder / "recipe.yaml", short))
    expected = CheckpointStore(folder / "short" / "checkpoints").load(good)
    for stem, tensors in expected.tensors.items():
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        assert same_bits(newest.tensors[stem], tensors)


# R5: a full disk


def test_a_disk_that_takes_no_more_costs_nothing_but_time(folder: Path) -> None:
    """The kernel refuses in the middle of the optimizer's file, when the model's, which is smaller, is written."""
    run = as_left_at(folder / "calm", folder / "full", 40)
    done = finished([*with_disk_full_at(4 << 20), "resume", str(run), "--json"])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (told,) = ours(done.stderr)
    assert re.match(rf"trivium: could not save {run}/checkpoints/step-60: File too large; a checkpoint needs", told)
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-20", "step-40"]
    newest = CheckpointStore(run / "checkpoints").load_latest()
    assert newest is not None and newest.step == 40
    assert not (run / "model").exists() and not list(run.glob(".tmp-*"))
    resume(run)
    assert_ends_as_the_calm_one(folder, run)


@pytest.mark.parametrize("at", ["recipe.yaml", "tokenizer/tokenizer.json"])
def test_a_disk_that_takes_nothing_at_all_is_told_in_one_line(folder: Path, at: str) -> None:
    """The limit lies below the size of the file that is to be too large, and above that of those written before."""
    recipe, tokenizer = (
        (folder / "calm" / name).stat().st_size for name in ("recipe.yaml", "tokenizer/tokenizer.json")
    )
    assert recipe + 1000 < tokenizer
    num_bytes = recipe // 2 if at == "recipe.yaml" else (recipe + tokenizer) // 2
    run = folder / f"full-at-{num_bytes}"
    done = finished([*with_disk_full_at(num_bytes), *begin(folder, run.name, "training.steps=1")[3:]])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert ours(done.stderr)[0].startswith(f"trivium: {run / at}: File too large; what was saved before stands")
    assert len(ours(done.stderr)) == 1 and "Traceback" not in done.stderr
    assert not (run / at).exists() and list(run.rglob(".tmp-*")) == []
    pretrain(load_recipe(PretrainRecipe, folder / "recipe.yaml", [f"run={run}", "training.steps=1"]))
