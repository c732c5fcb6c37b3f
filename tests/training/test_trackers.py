"""Trackers get what the log gets. TensorBoard is the real one; wandb's interface is recorded by a stand-in package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from training.small import TextSource, settings, small_model
from trivium.errors import UserError
from trivium.runtime import Runtime
from trivium.training.loop import train
from trivium.training.token_objective import TokenObjective
from trivium.training.trackers import open_trackers

RECORDING_PACKAGE = """
calls = []
def init(**given): calls.append(("init", given))
def log(values, step): calls.append(("log", values, step))
def finish(): calls.append(("finish",))
"""


def tracked_run(directory: Path, *names: str) -> list[dict[str, Any]]:
    """A run of three steps with these trackers; the records of its log."""
    chosen = settings(steps=3, trackers=names, tracker_project="ours")
    trackers = open_trackers(chosen, directory, {"seed": 1})
    records: list[Any] = []
    train(small_model(), TokenObjective(), TextSource(), chosen, Runtime(), listeners=[*trackers, records.append])
    for tracker in trackers:
        tracker.close()
    return records


def test_tensorboard_shows_the_logged_values(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    records = tracked_run(tmp_path, "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for key in ("loss", "learning_rate", "grad_norm"):
        shown = [(event.step, event.value) for event in events.Scalars(key)]
        assert shown == [(record["step"], pytest.approx(record[key], rel=1e-6)) for record in records]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_interface(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.py").write_text(RECORDING_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    records = tracked_run(tmp_path / "run7", name)
    calls = sys.modules[name].calls
    assert calls[0] == ("init", {"project": "ours", "name": "run7", "config": {"seed": 1}})
    assert [(values["loss"], step) for _, values, step in calls[1:-1]] == [(r["loss"], r["step"]) for r in records]
    assert calls[-1] == ("finish",)
    monkeypatch.delitem(sys.modules, name)


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; `pip install 'trivium\[wandb\]'`"):
        open_trackers(settings(trackers=("wandb",)), tmp_path, {})


def test_no_tracker_by_default(tmp_path: Path) -> None:
    assert open_trackers(settings(), tmp_path, {}) == []
