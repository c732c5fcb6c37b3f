"""Two real processes over gloo against one (rows R9, R10, R11): everything is run once, by `ranks.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.ranks import GRADIENT_ROWS, MASKED, THIRTY_STEPS, trained
from training.small import (
    TextSource,
    gradient_of_step,
    relative_difference,
    small_model,
    start_ranks,
    wait_for,
)
from trivium.errors import UserError
from trivium.runtime import Runtime
from trivium.training.distributed import BUCKET_BYTES, Peers, _buckets, process_group
from trivium.training.log import read_log, repeatable
from trivium.training.token_objective import TokenObjective

PROGRAM = Path(__file__).parent / "ranks.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left their results."""
    path = tmp_path_factory.mktemp("ranks")
    wait_for(start_ranks(PROGRAM, 2, str(path)))
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradient_of_two_ranks_equals_one_big_batch(folder: Path, dtype: torch.dtype, tolerance: float) -> None:
    source = TextSource(GRADIENT_ROWS, GRADIENT_ROWS, masked_rows=MASKED)
    whole = gradient_of_step(small_model(dtype=dtype), source, Runtime())
    both = load_file(folder / f"gradient-{dtype.itemsize * 8}.safetensors")["gradient"]
    assert relative_difference(both, whole) <= tolerance
    # Control: the mean of the two ranks' means, which is what averaging gradients gives, differs.
    halves = []
    for rank in (0, 1):
        half = TextSource(8, 8, masked_rows=tuple(row - 8 * rank for row in MASKED))
        half._row = lambda step, row, rank=rank: source._row(0, row + 8 * rank)
        halves.append(gradient_of_step(small_model(dtype=dtype), half, Runtime()))
    assert relative_difference((halves[0] + halves[1]) / 2, whole) > 1e-2


def test_thirty_steps_of_two_ranks_equal_one(results: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path, Runtime(seed=5), TokenObjective(accuracy=True), THIRTY_STEPS)
    alone = [repeatable(record) for record in read_log(tmp_path / "metrics.jsonl")]
    assert len(alone) == len(results["log"]) == 33
    for one, two in zip(alone, results["log"], strict=True):
        assert one.keys() == two.keys()
        for key in one:
            tolerance = 1e-4 if key == "grad_norm" else 1e-6 if "loss" in key else 0.0
            assert two[key] == pytest.approx(one[key], rel=tolerance, abs=0.0), key
    # Control: another seed's dropout is seen at once.
    trained(tmp_path / "other", Runtime(seed=6), TokenObjective(accuracy=True), THIRTY_STEPS)
    other = read_log(tmp_path / "other" / "metrics.jsonl")
    assert other[0]["loss"] != pytest.approx(alone[0]["loss"], rel=1e-6)
    assert results["stored"] == [15, 30]


def test_one_spoiled_rank_leaves_no_trace_on_any(results: dict[str, Any], folder: Path) -> None:
    assert results["cases_that_left_a_trace"] == []
    cases = [path for path in folder.iterdir() if " on rank " in path.name]
    assert len(cases) == 12
    for case in cases:
        assert [r["step"] for r in read_log(case / "metrics.jsonl") if "event" in r] == [6], case


def test_ranks_that_disagree_are_refused(results: dict[str, Any]) -> None:
    weights, scalars = results["refusals"]
    assert weights.startswith("the model's weights: differ between rank 0 and ranks [1]")
    assert scalars.startswith("the names of the objective's scalars: differ")


def test_small_collectives(results: dict[str, Any]) -> None:
    assert (results["sum"], results["largest"], results["from_main"]) == ([3.0, 20.0], 15, 0.0)


def test_the_group_leaves_no_thread_behind(results: dict[str, Any]) -> None:
    """A gloo thread that is still there when the interpreter ends may crash the process."""
    assert results["threads_left"] == 0


def test_alone_needs_no_group() -> None:
    with process_group(Runtime()):
        peers = Peers(Runtime())
    assert peers.alone and peers.sum([1.5]) == [1.5] and peers.largest(3) == 3 and peers.from_main(2.0) == 2.0


def test_several_ranks_without_a_launcher_are_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="torchrun"), process_group(Runtime(world_size=2)):
        pass
    with pytest.raises(RuntimeError, match="process_group"):
        Peers(Runtime(world_size=2))


def test_buckets_keep_order_and_split_by_size_and_dtype() -> None:
    half = torch.empty(BUCKET_BYTES // 8)
    gradients = [half, half, half, half.double(), torch.empty(3)]
    buckets = list(_buckets(gradients))
    assert [len(bucket) for bucket in buckets] == [2, 1, 1, 1]
    assert [id(g) for bucket in buckets for g in bucket] == [id(g) for g in gradients]
