"""Small checkpoints with known contents, made without torch: shared by the tests and the programs that they kill."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from trivium.checkpoints.store import Checkpoint
from trivium.checkpoints.tensors import RawTensor, num_bytes

# 5.5 KB and 12.5 KB: files of more than one 4 KiB page.
LAYOUT = {
    "model": {"embedding.weight": ("F32", (64, 20)), "norm.bias": ("BF16", (193,)), "scale": ("F64", ())},
    "optimizer": {"moment1.embedding.weight": ("F32", (64, 20)), "moment2.embedding.weight": ("F32", (64, 29))},
}


@cache
def sample(seed: int) -> tuple[dict[str, dict[str, RawTensor]], dict[str, Any]]:
    """(tensors, state) that depend on `seed` in every file; all bytes are non-zero, so that zeroing any is a damage."""
    rng = random.Random(seed)

    def filled(dtype: str, shape: tuple[int, ...]) -> RawTensor:
        return RawTensor(dtype, shape, memoryview(bytes(rng.choices(range(1, 256), k=num_bytes(dtype, shape)))))

    tensors = {stem: {name: filled(*kind) for name, kind in named.items()} for stem, named in LAYOUT.items()}
    return tensors, {"seed": seed, "loss": rng.random(), "log": [rng.random() for _ in range(300)]}


def which(checkpoint: Checkpoint) -> tuple[int, int]:
    """(step, seed) of a loaded checkpoint, after comparing every byte of it. Raises AssertionError on a mixture."""
    seed = checkpoint.state["seed"]
    tensors, state = sample(seed)
    assert checkpoint.state == state, "the state is not the one saved"
    found = {
        stem: {name: (t.dtype, t.shape, bytes(t.data)) for name, t in d.items()} for stem, d in checkpoint.raw.items()
    }
    saved = {stem: {name: (t.dtype, t.shape, bytes(t.data)) for name, t in d.items()} for stem, d in tensors.items()}
    assert found == saved, "the tensors are not those saved with this state"
    return checkpoint.step, seed
