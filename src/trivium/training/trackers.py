"""Metrics to TensorBoard, wandb or trackio, each an optional package.

A tracker is a listener: it is called with every record of the log. wandb and trackio share one adapter, since trackio
speaks wandb's interface. Only rank 0 tracks.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trivium.errors import UserError
from trivium.training.log import Record
from trivium.training.settings import TrainingSettings


class RunTracker(Protocol):
    """Somewhere the metrics go."""

    def __call__(self, record: Record) -> None:
        """Take one record of the log."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def open_trackers(settings: TrainingSettings, run: Path, recipe: Mapping[str, Any]) -> list[RunTracker]:
    """The trackers that `settings` names for the run directory `run`. UserError when a package is missing."""
    trackers: list[RunTracker] = []
    for name in dict.fromkeys(settings.trackers):
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(run / "tensorboard"))
        else:
            trackers.append(WandbTracker(_import(name, name), settings.tracker_project, run.name, recipe))
    return trackers


def numbers(record: Record) -> dict[str, float]:
    """The record's values that can be drawn."""
    return {
        key: float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoardTracker:
    """Event files that `tensorboard --logdir` shows."""

    def __init__(self, directory: Path) -> None:
        self._writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(directory))

    def __call__(self, record: Record) -> None:
        """Write the record's numbers at its step, and its event as text."""
        for key, value in numbers(record).items():
            self._writer.add_scalar(key, value, record["step"])
        if "event" in record:
            self._writer.add_text("event", str(record["event"]), record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbTracker:
    """wandb, or anything that speaks its interface."""

    def __init__(self, package: Any, project: str, name: str, recipe: Mapping[str, Any]) -> None:
        self._package = package
        package.init(project=project, name=name, config=dict(recipe))

    def __call__(self, record: Record) -> None:
        """Log the record's numbers at its step."""
        if values := numbers(record):
            self._package.log(values, step=record["step"])

    def close(self) -> None:
        """Finish the run there."""
        self._package.finish()


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"training.trackers: {extra} is not installed; `pip install 'trivium[{extra}]'`, or leave it out"
        ) from None
