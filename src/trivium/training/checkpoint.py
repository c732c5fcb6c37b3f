"""What a checkpoint of a training run holds, and back again.

Tensors: `model` (trainable parameters and buffers by name; frozen weights come from where the run got them) and
`optimizer` (the moments). State: `progress`, a handful of numbers. The position in the data is the step, and random
draws are seeded by arithmetic, so neither needs to be stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from trivium.checkpoints.store import Checkpoint
from trivium.errors import UserError
from trivium.quantization.linear import PackedMatrix
from trivium.training.optimizer import AdamW, copy_by_name
from trivium.training.precision import LossScale


@dataclass
class RunState:
    """Where a run stands, beside its tensors."""

    step: int = 0
    """Steps done; also the number of the next one, and with it the position in the data."""
    tokens: int = 0
    """Input tokens trained on, over all ranks."""
    loss: float | None = None
    """Mean loss of the last step that was taken."""
    skipped_steps: int = 0
    consecutive_skips: int = 0
    seconds: float = 0.0
    """Time spent on steps (evaluations and saves excluded)."""
    log_bytes: int = 0
    """Length of `metrics.jsonl` at this moment."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The last evaluation."""
    ended: str = ""
    """Why the run ended before its last step; empty: it has not."""
    evaluation_due: bool = False
    """An evaluation of this step was broken off by a signal and is to be made at the resume."""


def run_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint, by file and name. Not copies."""
    return {"model": _model_tensors(model, optimizer), "optimizer": optimizer.state_tensors()}


def pack_state(state: RunState, optimizer: AdamW, scale: LossScale) -> dict[str, Any]:
    """The JSON of a checkpoint."""
    return {"progress": asdict(state), "updates": optimizer.updates, "loss_scale": asdict(scale)}


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: AdamW, scale: LossScale) -> RunState:
    """Put a checkpoint's values into `model`, `optimizer` and `scale`. UserError when it is another model's."""
    try:
        state = RunState(**checkpoint.state["progress"])
        updates = checkpoint.state["updates"]
        stored_scale = LossScale(**checkpoint.state["loss_scale"])
        model_tensors, moments = checkpoint.tensors["model"], checkpoint.tensors["optimizer"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{checkpoint.path}: not a checkpoint of a training run ({error}); choose another") from None
    if stored_scale.dynamic == scale.dynamic:
        for item in fields(LossScale):
            setattr(scale, item.name, getattr(stored_scale, item.name))
    copy_by_name(_model_tensors(model, optimizer), model_tensors, f"{checkpoint.path}: weights")
    optimizer.load_state(moments, updates)
    return state


def _model_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Trainable parameters and the buffers that belong to the model, by name; tied ones once. The codes of packed
    matrices are frozen weights."""
    packed = {name for name, module in model.named_modules() if isinstance(module, PackedMatrix)}
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] not in packed}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in buffers}
    return {**{name: p.detach() for name, p in optimizer.parameters.items()}, **kept}
