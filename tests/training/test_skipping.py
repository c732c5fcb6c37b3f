"""Row R10: a step with a NaN, an infinity or a spike leaves no trace. (One rank only: see test_distributed.)"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.small import Spoiled, TextSource, fails, same_bits, settings, small_model
from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError
from trivium.runtime import Runtime
from trivium.training import loop
from trivium.training.log import read_log
from trivium.training.loop import NonFiniteError, TrainResult, train
from trivium.training.objective import Objective
from trivium.training.token_objective import TokenObjective

VALUES = [math.nan, math.inf, 1e30]
PLACES = ["loss", "gradient"]
# (rows per micro-batch, spoiled call of the objective): step 5 as one batch; the first, the last of its four batches.
MICRO_BATCHES = [(8, 5), (2, 20), (2, 23)]
SKIP = settings(on_non_finite="skip")


def outcome(
    directory: Path, objective: Objective, source: TextSource, **changes: Any
) -> tuple[TrainResult, dict[str, Tensor]]:
    """The result of a run, and its weights and moments at the end."""
    chosen = settings(**{**SKIP.model_dump(), **changes})
    store = CheckpointStore(directory, keep=1)
    result = train(
        small_model(dropout=0.1), objective, source, chosen, Runtime(), store=store, log=directory / "m.jsonl"
    )
    checkpoint = store.load_latest()
    assert checkpoint is not None
    return result, {f"{stem}/{name}": t for stem, named in checkpoint.tensors.items() for name, t in named.items()}


def assert_as_if_absent(tmp_path: Path, value: float, place: str, rows: int, calls: tuple[int, ...]) -> None:
    steps = tuple(call * rows // 8 for call in calls)
    absent = TextSource(8, rows, absent_steps=steps)
    _, expected = outcome(tmp_path / "absent", TokenObjective(), absent)
    result, got = outcome(tmp_path / "spoiled", Spoiled(value, place, calls), TextSource(8, rows))
    assert result.skipped_steps == len(steps)
    events = [record["step"] for record in read_log(tmp_path / "spoiled" / "m.jsonl") if "event" in record]
    assert events == [step + 1 for step in steps]
    assert same_bits(got, expected)


@pytest.mark.parametrize(("rows", "call"), MICRO_BATCHES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
def test_a_skipped_step_is_as_if_absent(tmp_path: Path, value: float, place: str, rows: int, call: int) -> None:
    assert_as_if_absent(tmp_path, value, place, rows, (call,))


@pytest.mark.parametrize("value", VALUES)
def test_the_next_spike_is_seen_as_well(tmp_path: Path, value: float) -> None:
    assert_as_if_absent(tmp_path, value, "gradient", 8, (4, 5, 9))


def test_control_an_unguarded_update_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Trainer, "_why_not", lambda self, report: None if report.targets else "nothing")
    assert fails(lambda: assert_as_if_absent(tmp_path, math.nan, "gradient", 8, (5,)))


def test_control_multiplying_the_update_by_zero_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do: an update with gradient times 0 still moves the moments, and 0 times NaN is NaN."""
    leave_out = loop.Trainer._leave_out

    def times_zero(self: loop.Trainer, report: Any, reason: str) -> None:
        leave_out(self, report, reason)
        if report.targets:
            torch._foreach_mul_([p.grad for p in self.optimizer.parameters.values()], 0.0)
            self.optimizer.step(0.0)

    monkeypatch.setattr(loop.Trainer, "_leave_out", times_zero)
    assert fails(lambda: assert_as_if_absent(tmp_path, math.nan, "gradient", 8, (5,)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
def test_stop_ends_the_run_before_the_update(tmp_path: Path, value: float, place: str) -> None:
    _, expected = outcome(tmp_path / "short", TokenObjective(), TextSource(8, 8), steps=5, schedule="constant")
    changes = {"schedule": "constant", "on_non_finite": "stop", "save_every_steps": 1}
    with pytest.raises(NonFiniteError, match=r"step 6 left out: the (loss|gradient norm) is .*nothing was updated"):
        outcome(tmp_path / "spoiled", Spoiled(value, place, (5,)), TextSource(8, 8), **changes)
    checkpoint = CheckpointStore(tmp_path / "spoiled").load_latest()
    assert checkpoint is not None and checkpoint.step == 5
    assert same_bits(
        {f"{stem}/{name}": t for stem, named in checkpoint.tensors.items() for name, t in named.items()}, expected
    )
    assert issubclass(NonFiniteError, UserError)


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    spoiled = Spoiled(math.nan, "loss", tuple(range(4, 12)))
    with pytest.raises(NonFiniteError, match=r"step 7 left out: .*, as were the 2 before it"):
        outcome(tmp_path, spoiled, TextSource(8, 8), max_consecutive_skips=3)
    result, _ = outcome(
        tmp_path / "apart", Spoiled(math.nan, "loss", (1, 2, 4, 5, 7, 8)), TextSource(8, 8), max_consecutive_skips=3
    )
    assert result.skipped_steps == 6


def test_data_without_targets_ends_the_run(tmp_path: Path) -> None:
    source = TextSource(4, 4, masked_rows=(0, 1, 2, 3))
    with pytest.raises(NonFiniteError, match="there is nothing to learn in it"):
        outcome(tmp_path, TokenObjective(), source)


def test_the_limit_of_a_spike_is_a_setting(tmp_path: Path) -> None:
    spoiled = Spoiled(1e4, "loss", (5,))
    assert outcome(tmp_path / "a", spoiled, TextSource(8, 8))[0].skipped_steps == 0
    spoiled = Spoiled(1e4, "loss", (5,))
    assert outcome(tmp_path / "b", spoiled, TextSource(8, 8), spike_limit=100.0)[0].skipped_steps == 1
