"""What is in a checkpoint of a run, and what a checkpoint of something else is told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from training.small import same_bits, settings, small_model
from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError
from trivium.training.checkpoint import RunState, pack_state, restore, run_tensors
from trivium.training.optimizer import AdamW, trainable_parameters
from trivium.training.precision import LossScale

CHOSEN = settings()


def test_round_trip(tmp_path: Path) -> None:
    model, other = small_model(tied_embeddings=False), small_model(seed=1, tied_embeddings=False)
    for each in (model, other):
        each.register_buffer("seen", torch.zeros(3))
        each.register_buffer("scratch", torch.zeros(3), persistent=False)
    model.seen += 4
    optimizer, fresh = AdamW(trainable_parameters(model), CHOSEN), AdamW(trainable_parameters(other), CHOSEN)
    optimizer.state_tensors()["mean/embedding.weight"].fill_(0.25)
    state = RunState(step=7, tokens=11, loss=0.1 + 0.2, evaluation={"held_out_loss": 1 / 3}, evaluation_due=True)
    scale = LossScale(0.5, 3, True)
    CheckpointStore(tmp_path).save(7, run_tensors(model, optimizer), pack_state(state, optimizer, scale))
    checkpoint = CheckpointStore(tmp_path).load_latest()
    assert checkpoint is not None
    new_scale = LossScale.for_precision("fp16")
    assert restore(checkpoint, other, fresh, new_scale) == state
    assert asdict(new_scale) == asdict(scale)
    assert same_bits(dict(other.state_dict()), dict(model.state_dict()))
    assert same_bits(fresh.state_tensors(), optimizer.state_tensors())
    assert "seen" in checkpoint.tensors["model"] and "scratch" not in checkpoint.tensors["model"]


def test_loss_scale_of_another_precision_is_not_taken_over(tmp_path: Path) -> None:
    model = small_model()
    optimizer = AdamW(trainable_parameters(model), CHOSEN)
    state = pack_state(RunState(), optimizer, LossScale.for_precision("fp16"))
    CheckpointStore(tmp_path).save(0, run_tensors(model, optimizer), state)
    scale = LossScale.for_precision("bf16")
    restore(CheckpointStore(tmp_path).load(0), model, optimizer, scale)
    assert scale.value == 1.0


def test_something_else_is_refused(tmp_path: Path) -> None:
    model = small_model()
    optimizer = AdamW(trainable_parameters(model), CHOSEN)
    CheckpointStore(tmp_path).save(1, {"model": {}}, {"progress": {"stride": 3}})
    with pytest.raises(UserError, match="not a checkpoint of a training run"):
        restore(CheckpointStore(tmp_path).load(1), model, optimizer, LossScale())
