"""Training that is told its plan keeps near it: a smaller process, and the same numbers, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from torch import nn

from trivium.training.memory import Ceiling, current_bytes

# Trains on a Llama of a few layers, in a process of its own; says its peak beyond its size before, and its last loss.
SCRIPT = """
import json, sys, torch
from trivium.data.batch import Batch
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.training.token_objective import TokenObjective
from trivium.runtime import Runtime, prepare_process
from trivium.training.loop import train
from trivium.training.memory import current_bytes, peak_bytes
from trivium.training.settings import TrainingSettings

more = json.loads(sys.argv[1])
runtime = Runtime(threads=1)
prepare_process(runtime)
config = ModelConfig(vocab_size=512, width=256, layers=4, heads=4, max_positions=128)
model = build_model(config)
initialise(model, config, seed=0)
ids = torch.arange(16 * 129).remainder(512).view(16, 129)

class Source:
    rows_per_step = 32
    def micro_batches(self, step):
        return (Batch(ids[:, :-1], ids[:, 1:]) for _ in range(2))
    def worst_case(self):
        return Batch(ids[:, :-1], ids[:, 1:])

before = current_bytes(torch.device("cpu"))
settings = TrainingSettings(steps=2, gradient_checkpointing=True)
planned = None if more is None else before + more
result = train(model, TokenObjective(), Source(), settings, runtime, planned_peak_bytes=planned)
print(json.dumps([peak_bytes(torch.device("cpu")) - before, result.final_loss]))
"""


def trained(planned_bytes_more: int | None) -> tuple[int, float]:
    """(bytes that training added to the process at most, the last loss)."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(planned_bytes_more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    added, loss = json.loads(done.stdout.splitlines()[-1])
    return added, loss


def test_a_process_keeps_near_its_plan_with_the_same_numbers() -> None:
    """Control: the process that is told nothing is the larger one."""
    alone, loss = trained(None)
    told, same_loss = trained(1)
    assert told < 0.9 * alone
    assert same_loss == loss


def test_what_cannot_be_given_back_is_not_asked_for_again() -> None:
    here = current_bytes(torch.device("cpu"))
    tight = Ceiling(here // 2)
    tight.keep()
    tight.keep()
    assert tight.given_back == 1
    held = torch.ones(here // 8)  # half as much again
    tight.keep()
    assert tight.given_back == 2 and held[0] == 1
    roomy = Ceiling(100 * here)
    roomy.keep()
    assert roomy.given_back == 0


def test_blocks_are_watched_in_both_directions_until_they_are_not() -> None:
    blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
    ceiling = Ceiling(1)
    looked: list[int] = []
    ceiling.keep = lambda: looked.append(1)  # type: ignore[method-assign]
    watches = ceiling.watch(blocks)
    y = torch.ones(1, 3)
    for block in blocks:
        y = block(y)
    assert len(looked) == 2
    y.sum().backward()
    assert len(looked) == 4
    for watch in watches:
        watch.remove()
    blocks[0](y)
    assert len(looked) == 4
