"""One rank of two: everything that tests/training/test_distributed.py asks of several processes, in one start.

usage: ranks.py FOLDER. Rank 0 leaves `results.json` and one safetensors file per gradient or final state there.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.small import Spoiled, TextSource, gradient_of_step, settings, small_model
from trivium.checkpoints.store import CheckpointStore
from trivium.runtime import Runtime, world_from_environment
from trivium.training.distributed import Peers, digest_of_tensors, process_group
from trivium.training.evaluate import evaluate_loss
from trivium.training.log import read_log, repeatable
from trivium.training.loop import train
from trivium.training.objective import Objective
from trivium.training.token_objective import TokenObjective

# What the tests compare with on one rank: a step of 16 rows, 4 of them masked; a run of 30 steps with dropout.
MASKED = (8, 9, 10, 11)
GRADIENT_ROWS = 16
THIRTY_STEPS = settings(steps=30, save_every_steps=15, evaluate_every_steps=10)
SKIP = settings(on_non_finite="skip")


def trained(folder: Path, runtime: Runtime, objective: Objective, chosen: Any, **source: Any) -> dict[str, Tensor]:
    """Weights and moments after a run of both ranks; the log lies in `folder`."""
    model = small_model(dropout=0.1)
    store = CheckpointStore(folder / "checkpoints")
    batches = TextSource(rank=runtime.rank, world_size=runtime.world_size, **source)

    def evaluate(should_stop: Any) -> dict[str, float]:
        held_out = list(TextSource(8, 4, rank=runtime.rank, world_size=runtime.world_size).micro_batches(1000))
        report = evaluate_loss(model, TokenObjective(accuracy=True), held_out, runtime)
        return {"held_out_loss": report.loss, "correct": report.scalars["correct"], "targets": report.targets}

    log = folder / "metrics.jsonl"
    train(model, objective, batches, chosen, runtime, store=store, log=log, evaluate=evaluate)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    return {f"{stem}/{name}": t for stem, named in checkpoint.tensors.items() for name, t in named.items()}


def gradients(folder: Path, runtime: Runtime) -> None:
    """Row R11: the gradient of 16 rows on two ranks of 8."""
    for dtype in (torch.float64, torch.float32):
        source = TextSource(GRADIENT_ROWS, 8, rank=runtime.rank, world_size=runtime.world_size, masked_rows=MASKED)
        gradient = gradient_of_step(small_model(dtype=dtype), source, runtime)
        if runtime.is_main:
            save_file({"gradient": gradient}, folder / f"gradient-{dtype.itemsize * 8}.safetensors")


def poisoned_ranks(folder: Path, runtime: Runtime) -> list[str]:
    """Row R10: one rank's loss or gradient spoiled at step 5; the cases that left a trace."""
    expected = trained(folder / "absent", runtime, TokenObjective(), SKIP, absent_steps=(5,))
    traces = []
    for rank in (0, 1):
        for place in ("loss", "gradient"):
            for value in (math.nan, math.inf, 1e30):
                calls = (5,) if rank == runtime.rank else ()
                case = f"{place} {value} on rank {rank}"
                got = trained(folder / case, runtime, Spoiled(value, place, calls), SKIP)
                if digest_of_tensors(got) != digest_of_tensors(expected):
                    traces.append(case)
    return traces


def refusals(runtime: Runtime) -> list[str]:
    """What is said when ranks do not agree at the start."""
    said = []
    for make in (
        lambda: train(small_model(seed=runtime.rank), TokenObjective(), TextSource(), settings(), runtime),
        lambda: train(small_model(), TokenObjective(accuracy=runtime.is_main), TextSource(), settings(), runtime),
    ):
        try:
            make()
        except RuntimeError as error:
            said.append(str(error))
    return said


def main(folder: Path) -> None:
    rank, world_size = world_from_environment()
    runtime = Runtime(seed=5, rank=rank, world_size=world_size)
    threads = psutil.Process().num_threads()
    with process_group(runtime):
        peers = Peers(runtime)
        gradients(folder, runtime)
        trained(folder / "thirty", runtime, TokenObjective(accuracy=True), THIRTY_STEPS)
        traces = poisoned_ranks(folder, runtime)
        stored = CheckpointStore(folder / "thirty" / "checkpoints").steps()
        results = {
            "log": [repeatable(record) for record in read_log(folder / "thirty" / "metrics.jsonl")],
            "stored": stored,
            "cases_that_left_a_trace": traces,
            "refusals": refusals(runtime),
            "sum": peers.sum([rank + 1.0, 10.0]),
            "largest": peers.largest(15 * rank),
            "from_main": peers.from_main(float(rank)),
        }
    results["threads_left"] = psutil.Process().num_threads() - threads
    if runtime.is_main:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
