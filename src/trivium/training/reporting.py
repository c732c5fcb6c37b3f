"""What a run says while it goes: records for the log and the listeners, and now and then a line for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trivium.progress import Progress, short_bytes, short_number
from trivium.training.gradients import StepReport
from trivium.training.log import MetricsLog, Record
from trivium.training.memory import current_bytes

Listener = Callable[[Record], None]

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """The voice of rank 0."""

    def __init__(
        self,
        device: torch.device,
        progress: Progress,
        listeners: Sequence[Listener],
        flops_per_token: float | None,
        peak_flops: float | None,
    ) -> None:
        """`flops_per_token`: of training; `peak_flops`: FLOP/s that all ranks together could do at best."""
        self._device, self._progress, self._listeners = device, progress, listeners
        self._mfu_per_rate = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        self._log: MetricsLog | None = None
        self._seconds = 0.0
        self._tokens = 0
        self._last_line = time.monotonic()

    def open(self, log: Path | None, keep_bytes: int, seconds: float, tokens: int) -> None:
        """Begin (all zero) or go on from a checkpoint."""
        if log is not None:
            self._log = MetricsLog(log, keep_bytes)
        self._seconds, self._tokens = seconds, tokens

    def close(self) -> None:
        """The run is over."""
        if self._log is not None:
            self._log.close()

    def sync(self) -> int:
        """Flush the log to the disk; its length in bytes."""
        return 0 if self._log is None else self._log.sync()

    def step(self, step: int, steps: int, report: StepReport, rate: float, seconds: float, tokens: int) -> None:
        """A step was taken. `rate`: learning rate; `seconds`, `tokens`: since the start of the run."""
        record: dict[str, Any] = {
            "step": step,
            "loss": report.loss,
            "learning_rate": rate,
            "grad_norm": report.gradient_norm,
            "targets": report.targets,
            "tokens": tokens,
            **report.scalars,
            "seconds": seconds,
            "tokens_per_second": (tokens - self._tokens) / max(seconds - self._seconds, 1e-9),
            "memory_bytes": current_bytes(self._device),
        }
        if self._mfu_per_rate is not None:
            record["mfu"] = record["tokens_per_second"] * self._mfu_per_rate
        self._seconds, self._tokens = seconds, tokens
        self._send(record)
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or step == steps:
            self._last_line = time.monotonic()
            self._progress.note(line(record, steps))

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Held-out data was measured."""
        self._send({"step": step, **values})
        self._progress.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def event(self, step: int, text: str) -> None:
        """Something happened that is worth a word."""
        self._send({"step": step, "event": text})
        self._progress.note(f"step {step}: {text}")

    def _send(self, record: Record) -> None:
        if self._log is not None:
            self._log.write(record)
        for listener in self._listeners:
            listener(record)


def line(record: Record, steps: int) -> str:
    """A training record for people, on one line."""
    parts = [
        f"step {record['step']}/{steps}: loss {record['loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"{short_number(record['tokens_per_second'])} tokens/s",
        short_bytes(record["memory_bytes"]),
    ]
    if "mfu" in record:
        parts.insert(3, f"MFU {record['mfu']:.0%}")
    return ", ".join(parts)
