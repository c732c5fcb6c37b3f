"""How a model is trained: `TrainingSettings` (read by `--help`, so torch is not imported here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trivium.config import Settings
from trivium.runtime import Precision

Schedule = Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

# Without a wish, one step in this many warms up.
STEPS_PER_WARMUP_STEP = 50


class TrainingSettings(Settings):
    """The optimizer, its schedule, and what the loop does besides stepping."""

    steps: int = Field(ge=1)
    """How many optimizer steps the whole run takes."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest learning rate, reached after warm-up; larger models want smaller ones."""
    final_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """The learning rate at the end, as a share of `learning_rate`; `constant` and `inverse_sqrt` have no use for it."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warm-up: along half a cosine, along a line, `wsd` (level, then a line over
    the last `decay_fraction` of the steps), as one over the root of the step (`inverse_sqrt`; Vaswani et al., 2017), or
    not at all."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises in a line to its highest; null: one step in fifty."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """The last share of the steps, in which a `wsd` schedule falls."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Shrinks matrices (embeddings included) by this times the learning rate each step; vectors are never decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Memory of the mean of the gradients in AdamW."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Memory of the mean of the squared gradients; 0.95 forgets a spike sooner than AdamW's 0.999."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradients, against division by zero."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The gradient is scaled down to this length when it is longer; null never does so."""
    precision: Precision = "fp32"
    """Precision of matrix products: fp32, or bf16 / fp16 by autocast. Trained weights and their moments stay fp32."""
    compile: bool = False
    """Compile each repeated block with `torch.compile`: slow to start, a little faster afterwards."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""
    cross_entropy_chunk_tokens: int = Field(default=0, ge=0)
    """How many positions' logits exist at a time; 0 chooses it from the size of the vocabulary."""
    on_non_finite: Literal["skip", "stop"] = "stop"
    """What to do when the loss or the gradient is not a sane number: leave the step out, or end the run before it."""
    max_consecutive_skips: int = Field(default=10, ge=1)
    """So many steps left out in a row end the run, since then it is not the data's fault."""
    spike_limit: float = Field(default=1e8, gt=0)
    """A mean loss or a gradient norm beyond this is treated as if it were infinite."""
    evaluate_every_steps: int = Field(default=0, ge=0)
    """Measure held-out data every so many steps and at the end; 0: at the end only."""
    save_every_steps: int = Field(default=500, ge=0)
    """Save a checkpoint every so many steps and at the end; 0: at the end only."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""
    log_every_steps: int = Field(default=1, ge=1)
    """Write a line to `metrics.jsonl` every so many steps."""
    trackers: tuple[Tracker, ...] = ()
    """Where else the metrics go: any of tensorboard, wandb, trackio."""
    tracker_project: str = Field(default="trivium", min_length=1)
    """The project name that wandb and trackio file the run under."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainingSettings:
        if self.warmup_steps is not None and self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self

    @property
    def resolved_warmup_steps(self) -> int:
        """`warmup_steps`, or what stands for it when none are given."""
        return self.steps // STEPS_PER_WARMUP_STEP if self.warmup_steps is None else self.warmup_steps
