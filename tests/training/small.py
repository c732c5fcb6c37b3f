"""A small decoder, real bytes to train it on, and the ways a test may spoil a step."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data.batch import IGNORED, Batch
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.runtime import Runtime
from trivium.training.distributed import Peers
from trivium.training.gradients import GradientMaker
from trivium.training.objective import LossReport, first_row_of_rank
from trivium.training.optimizer import trainable_parameters
from trivium.training.settings import TrainingSettings
from trivium.training.token_objective import TokenObjective

# Real text: the source of a module of the standard library.
TEXT = Path(textwrap.__file__).read_bytes()
VOCABULARY = 128


def small_model(seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
    """A decoder of about 13 000 parameters."""
    shape = {"vocab_size": VOCABULARY, "width": 32, "layers": 2, "heads": 2, "dropout": dropout, "max_positions": 64}
    config = ModelConfig(**{**shape, **changes})
    model = build_model(config)
    initialise(model, config, seed)
    return model.to(dtype)


@dataclass
class TextSource:
    """Rows of bytes of varying length; row g begins at a place in the text that is arithmetic in g."""

    rows_per_step: int = 8
    rows_per_micro_batch: int = 4
    length: int = 16
    rank: int = 0
    world_size: int = 1
    masked_rows: tuple[int, ...] = ()
    """Rows of each step without any target."""
    absent_steps: tuple[int, ...] = ()
    """Steps that have no micro-batch at all."""
    worst: Batch | None = None

    def micro_batches(self, step: int) -> Iterator[Batch]:
        if step in self.absent_steps:
            return
        first = first_row_of_rank(self.rows_per_step, self.rank, self.world_size)
        end = first_row_of_rank(self.rows_per_step, self.rank + 1, self.world_size)
        for start in range(first, end, self.rows_per_micro_batch):
            yield self.rows(step, range(start, min(start + self.rows_per_micro_batch, end)))

    def worst_case(self) -> Batch | None:
        return self.worst

    def rows(self, step: int, rows: Sequence[int]) -> Batch:
        pieces = [self._row(step, row) for row in rows]
        return Batch(torch.stack([ids for ids, _ in pieces]), torch.stack([targets for _, targets in pieces]))

    def _row(self, step: int, row: int) -> tuple[Tensor, Tensor]:
        place = (step * self.rows_per_step + row) * 977 % (len(TEXT) - self.length - 1)
        stream = torch.tensor([byte % VOCABULARY for byte in TEXT[place : place + self.length + 1]])
        ids, targets = stream[:-1], stream[1:].clone()
        targets[3 + place % (self.length - 3) :] = IGNORED
        targets[place % 3 : place % 3 + 2] = IGNORED
        if row in self.masked_rows:
            targets[:] = IGNORED
        return ids, targets


@dataclass
class Spoiled:
    """The causal objective with one micro-batch's loss, or one element of its gradient, replaced."""

    value: float
    place: str
    """`loss` or `gradient`."""
    calls: tuple[int, ...]
    """Which calls of `loss` are spoiled, counted from 0."""
    honest: TokenObjective = field(default_factory=TokenObjective)
    made: int = -1
    hook: Any = None

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        report = self.honest.loss(model, batch)
        self.made += 1
        if self.hook is not None:
            self.hook.remove()
        if self.made not in self.calls:
            return report
        if self.place == "loss":
            return LossReport(report.sum * self.value, report.count, report.scalars)
        self.hook = next(model.parameters()).register_hook(self._spoil)
        return report

    def _spoil(self, gradient: Tensor) -> Tensor:
        spoiled = gradient.clone()
        spoiled.view(-1)[5] = self.value
        return spoiled


def settings(**changes: Any) -> TrainingSettings:
    """Twelve brisk steps."""
    return TrainingSettings(**{"steps": 12, "learning_rate": 0.01, "warmup_steps": 2, **changes})


def gradient_of_step(
    model: Decoder, source: TextSource, runtime: Runtime, objective: Any = None, step: int = 0
) -> Tensor:
    """The gradient of one step, flat, in fp64; the model is left without one."""
    parameters = list(trainable_parameters(model).values())
    maker = GradientMaker(
        model, objective or TokenObjective(), parameters, runtime, Peers(runtime), source.rows_per_step
    )
    maker.make(source.micro_batches(step), step)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]).double()
    for parameter in parameters:
        parameter.grad = None
    return flat


def relative_difference(a: Tensor, b: Tensor) -> float:
    """L2 norm of the difference over the norm of `b`."""
    return float((a - b).norm() / b.norm())


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of named tensors are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start_program(program: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A test program in a process of its own, with one compute thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    return subprocess.Popen([sys.executable, str(program), *arguments], env=env, stderr=subprocess.PIPE)


def start_ranks(program: Path, world_size: int, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """The same program `world_size` times, as torchrun would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start_program(program, *arguments, RANK=str(rank), **common) for rank in range(world_size)]


def wait_for(
    processes: Sequence[subprocess.Popen[bytes]], expected: int | Sequence[int] = 0, seconds: float = 120
) -> None:
    """Wait for processes to end; AssertionError with what they said when one hangs or ends with another exit code."""
    codes = [expected] * len(processes) if isinstance(expected, int) else list(expected)
    try:
        said = [process.communicate(timeout=seconds)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == codes, "\n".join(said)


Check = Callable[[], None]


def fails(check: Check) -> bool:
    """Whether a check turns red: how a test shows that its broken control is caught."""
    try:
        check()
    except AssertionError:
        return True
    return False
