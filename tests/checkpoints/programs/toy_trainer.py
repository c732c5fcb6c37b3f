"""A trainer of a few lines that checkpoints, logs and resumes: something for the kill harness to kill.

usage: toy_trainer.py RUN_DIR [forget_momentum | the name of a mutant]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from checkpoints.mutants import MUTANTS
from trivium.checkpoints.store import CheckpointStore
from trivium.checkpoints.tensors import RawTensor
from trivium.files import write_atomically

STEPS, SAVE_EVERY, SIDE = 600, 10, 256


def raw(array: numpy.ndarray) -> RawTensor:
    return RawTensor("F32", array.shape, memoryview(array).cast("B"))


def array(tensor: RawTensor) -> numpy.ndarray:
    return numpy.frombuffer(tensor.data, numpy.float32).reshape(tensor.shape).copy()


def main(run: Path, bug: str | None) -> None:
    if bug in MUTANTS:
        MUTANTS[bug]()
    store, log = CheckpointStore(run / "checkpoints", keep=1, note=print), run / "metrics.jsonl"
    store.clean()
    weights = numpy.ones((SIDE, SIDE), numpy.float32)
    momentum, first = numpy.zeros_like(weights), 0
    if checkpoint := store.load_latest():
        first = checkpoint.state["next_step"]
        weights = array(checkpoint.raw["model"]["weights"])
        if bug != "forget_momentum":
            momentum = array(checkpoint.raw["optimizer"]["momentum"])
    kept = log.read_text().splitlines(keepends=True)[:first] if log.exists() else []
    write_atomically(log, "".join(kept))
    for step in range(first, STEPS):
        noise = numpy.random.default_rng([7, step]).standard_normal(weights.shape, numpy.float32)
        gradient = weights - 0.1 * noise
        momentum = numpy.float32(0.9) * momentum + gradient
        weights = weights - numpy.float32(0.01) * momentum
        time.sleep(0.001)
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "loss": float((gradient**2).mean()), "time": time.time()}) + "\n")
        if (step + 1) % SAVE_EVERY == 0:
            tensors = {"model": {"weights": raw(weights)}, "optimizer": {"momentum": raw(momentum)}}
            store.save(step + 1, tensors, {"next_step": step + 1})


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or [None])[0])
