"""A training run to be interrupted: prints nothing, resumes by itself.

usage: interrupted_run.py FOLDER [EVENT]. EVENT is a moment of the run at which it signals itself:
forward, backward, update, evaluation, save, late; or `twice:` before one of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.small import TextSource, settings, small_model
from trivium.checkpoints.store import CheckpointStore
from trivium.data.batch import Batch
from trivium.runtime import Runtime, world_from_environment
from trivium.training.distributed import process_group
from trivium.training.evaluate import evaluate_loss
from trivium.training.loop import train
from trivium.training.objective import LossReport
from trivium.training.token_objective import TokenObjective

CHOSEN = settings(steps=14, evaluate_every_steps=5, save_every_steps=6)
# The seventh of two micro-batches a step: in the middle of step 4.
CALL = 7


class Moments:
    """The causal objective and what surrounds it, with a signal at one moment."""

    def __init__(self, moment: str, number: int = signal.SIGTERM) -> None:
        self.moment, self.number = moment.removeprefix("twice:"), number
        self.times = 2 if moment.startswith("twice:") else 1
        self.calls = 0
        self.sent = False

    def at(self, moment: str) -> None:
        if moment == self.moment and not self.sent:
            self.sent = True
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        self.calls += 1
        report = TokenObjective().loss(model, batch)
        if self.calls == CALL:
            self.at("forward")
            report.sum.register_hook(lambda gradient: self.at("backward"))
        if self.calls == CALL + 1:
            next(model.parameters()).register_post_accumulate_grad_hook(lambda parameter: self.at("update"))
        return report


class SignallingStore(CheckpointStore):
    """A store whose saves may be interrupted."""

    moments: Moments

    def _write(self, *arguments: Any) -> None:
        super()._write(*arguments)
        self.moments.at("save")


def run(folder: Path, moments: Moments, runtime: Runtime) -> None:
    """Train in `folder` to the end, or to the signal."""
    model = small_model(dropout=0.1)
    source = TextSource(rank=runtime.rank, world_size=runtime.world_size, rows_per_micro_batch=4)
    store = SignallingStore(folder / "checkpoints")
    store.moments = moments

    def evaluate(should_stop: Callable[[], bool]) -> Mapping[str, float]:
        batches = TextSource(8, 2).micro_batches(1000)

        def signalled() -> bool:
            moments.at("evaluation")
            return should_stop()

        report = evaluate_loss(model, TokenObjective(), batches, runtime, should_stop=signalled)
        return {"held_out_loss": report.loss}

    train(model, moments, source, CHOSEN, runtime, store=store, evaluate=evaluate, log=folder / "metrics.jsonl")


def main(folder: Path, moment: str) -> None:
    torch.set_num_threads(1)
    rank, world_size = world_from_environment()
    runtime = Runtime(seed=3, rank=rank, world_size=world_size)
    # Of several ranks only the last one is signalled.
    moments = Moments(moment if rank == world_size - 1 else "")
    with process_group(runtime):
        run(folder, moments, runtime)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
