"""Two real processes under `torchrun` (gloo) against one: the same losses (R9), the same rows whoever goes on (R8),
and a kill of everything that costs nothing (R1).

A step has 6 rows in micro-batches of 2, so that the three rows of a rank make one micro-batch and a half: what is
compared is cut up differently on one process and on two. Dropout is off, since its draws belong to micro-batches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.small_runs import (
    ENVIRONMENT,
    PATIENCE_S,
    TWO_RANKS,
    as_left_at,
    finished,
    kill_tree,
    losses,
    wait_until,
    with_disk_full_at,
)
from pretraining.test_run import recipe_for, same_runs
from training.small import fails
from trivium.checkpoints.store import CheckpointStore
from trivium.config import dump_recipe
from trivium.pretraining.run import pretrain, resume
from trivium.training.log import read_log

STEPS = 30
TOLERANCE = 1e-6
# Rank 1 goes through the text in an order of its own, as with a sampler that is seeded by the rank.
OTHER_ROWS_ON_RANK_1 = """
import os, sys
from trivium.cli import main
from trivium.pretraining import material
source = material.training_source
if os.environ["RANK"] == "1":
    material.training_source = lambda *given, **options: source(*given, **{**options, "seed": 6})
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the recipe, and the run of one process in `one`."""
    path = tmp_path_factory.mktemp("torchrun")
    recipe = recipe_for(path, "one", steps=STEPS, keep_checkpoints=9)
    recipe = recipe.model_copy(update={"model": recipe.model.changed(dropout=0.0)})
    (path / "recipe.yaml").write_text(dump_recipe(recipe))
    pretrain(recipe)
    return path


@pytest.fixture(scope="module")
def two(folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run of two processes in `two`."""
    done = finished(on_two_ranks(folder, "two"))
    assert done.returncode == 0, done.stderr
    return done


def on_two_ranks(folder: Path, run: str) -> list[str]:
    return [*TWO_RANKS, "-m", "trivium", "pretrain", str(folder / "recipe.yaml"), f"run={folder / run}", "--json"]


def counts(run: Path) -> list[tuple[int, int, int]]:
    """(step, targets, tokens so far) of each step: which rows it had shows in the number of its targets."""
    log = read_log(run / "metrics.jsonl")
    return [(line["step"], line["targets"], line["tokens"]) for line in log if "loss" in line]


def assert_learned_alike(one: Path, other: Path) -> None:
    """The same rows in each step, and the same loss of each step."""
    assert counts(one) == counts(other)
    theirs = losses(other)
    worst = max(abs(theirs[step] / loss - 1) for step, loss in losses(one).items())
    print(f"largest relative difference of the loss in {len(theirs)} steps: {worst:.1e}")
    assert len(theirs) == STEPS and worst <= TOLERANCE


def test_two_ranks_learn_what_one_process_learns(folder: Path, two: subprocess.CompletedProcess[str]) -> None:
    assert_learned_alike(folder / "one", folder / "two")


def test_one_json_object_is_all_that_two_ranks_print(folder: Path, two: subprocess.CompletedProcess[str]) -> None:
    (line,) = two.stdout.splitlines()
    summary = json.loads(line)
    assert summary["steps"] == STEPS and summary["run"] == str(folder / "two")
    assert json.loads((folder / "two" / "summary.json").read_text())["held_out"] == summary["held_out"]


def test_control_a_rank_with_rows_of_its_own_is_seen(folder: Path) -> None:
    command = [*TWO_RANKS, "--no-python", sys.executable, "-c", OTHER_ROWS_ON_RANK_1]
    done = finished([*command, *on_two_ranks(folder, "other")[len(TWO_RANKS) + 2 :]])
    assert done.returncode == 0, done.stderr
    assert fails(lambda: assert_learned_alike(folder / "one", folder / "other"))
    first, same = losses(folder / "other")[1], losses(folder / "one")[1]
    assert abs(first / same - 1) > 100 * TOLERANCE, "the loss alone tells, from the first step on"


def started(folder: Path, run: str) -> subprocess.Popen[bytes]:
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(on_two_ranks(folder, run), env=ENVIRONMENT, **output)


def test_both_ranks_killed_the_run_ends_bit_identical(folder: Path, two: subprocess.CompletedProcess[str]) -> None:
    run = folder / "killed"
    process = started(folder, "killed")
    wait_until(lambda: len(losses(run)) >= 13, process)
    kill_tree(process)
    assert 13 <= len(losses(run)) < STEPS
    kept = CheckpointStore(run / "checkpoints").load_latest()
    assert kept is not None and kept.step in (10, 20)
    again = finished(on_two_ranks(folder, "killed"))
    assert again.returncode == 0, again.stderr
    assert same_runs(folder / "two", run) == []


def test_two_ranks_go_on_where_one_process_stopped(folder: Path) -> None:
    run = as_left_at(folder / "one", folder / "one-then-two", 10)
    done = finished([*TWO_RANKS, "-m", "trivium", "resume", str(run), "--json"])
    assert done.returncode == 0, done.stderr
    assert_learned_alike(folder / "one", run)
    assert CheckpointStore(run / "checkpoints").steps() == [10, 20, 30]


def test_one_process_goes_on_where_two_ranks_stopped(folder: Path, two: subprocess.CompletedProcess[str]) -> None:
    run = as_left_at(folder / "two", folder / "two-then-one", 10)
    resume(run)
    assert_learned_alike(folder / "one", run)


@pytest.mark.long
def test_a_signal_to_the_launcher_saves_the_step_and_costs_nothing(
    folder: Path, two: subprocess.CompletedProcess[str]
) -> None:
    run = folder / "told"
    process = started(folder, "told")
    wait_until(lambda: len(losses(run)) >= 5, process)
    process.terminate()
    assert process.wait(PATIENCE_S) != 0
    assert CheckpointStore(run / "checkpoints").steps() == [len(losses(run))]
    again = finished(on_two_ranks(folder, "told"))
    assert again.returncode == 0, again.stderr
    assert same_runs(folder / "two", run) == []


def test_what_one_rank_refuses_is_said_once(folder: Path) -> None:
    done = finished([*on_two_ranks(folder, "one"), f"training.steps={STEPS + 1}"])
    assert done.returncode != 0 and done.stdout == ""
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("trivium: ")]
    assert "holds a run of another recipe (it differs in: training)" in told
    assert "[rank1]: Traceback" not in done.stderr


def test_what_one_rank_cannot_save_is_said_once(folder: Path) -> None:
    run = as_left_at(folder / "one", folder / "full", 20)
    done = finished([*TWO_RANKS, "--no-python", *with_disk_full_at(4 << 20), "resume", str(run)])
    assert done.returncode != 0
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("trivium: ")]
    assert f"could not save {run}/checkpoints/step-30: File too large" in told
    assert "[rank1]: Traceback" not in done.stderr
    assert CheckpointStore(run / "checkpoints").steps() == [10, 20]
