"""A process of `benchmarks/planning.py --speed`: steps of the real loop, with or without keeping to their plan.

It stays warm and answers `run N` with the processor time that N steps took, and `quit` with its peak and with how often
it gave freed memory back (`training/memory.py`); the steps are those of `training_worker.py`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

import torch
from workers.process import peak_resident_bytes, stdout_for_answers, tell
from workers.training_worker import Job, our_config, our_step

from trivium.models.transformer import Stack
from trivium.planner.memory import estimate
from trivium.training.memory import Ceiling


def serve(job: Job, keeps: bool) -> None:
    """Build the model, then obey stdin."""
    answers = stdout_for_answers()
    model, step = our_step(job)
    plan = estimate(
        our_config(job, "llama"),
        rows_per_micro_batch=job.rows,
        sequence_length=job.length,
        precision="bf16" if job.uses_bf16 else "fp32",
    )
    ceiling = Ceiling(plan.peak_bytes)
    if keeps:
        ceiling.watch(block for stack in model.modules() if isinstance(stack, Stack) for block in stack.blocks)
    tell(answers, planned_bytes=plan.peak_bytes, threads=torch.get_num_threads())
    for command in sys.stdin:
        if command.strip() == "quit":
            tell(answers, peak_bytes=peak_resident_bytes(), given_back=ceiling.given_back)
            return
        began = time.process_time()
        for _ in range(int(command.removeprefix("run"))):
            step()
        tell(answers, seconds=time.process_time() - began, given_back=ceiling.given_back)


def arguments(job: Job, keeps: bool) -> list[str]:
    """The command that starts a worker."""
    return [sys.executable, "-m", "workers.ceiling_worker", json.dumps(asdict(job)), json.dumps(keeps)]


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])), json.loads(sys.argv[2]))
