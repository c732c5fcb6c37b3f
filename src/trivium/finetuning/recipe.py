"""The recipe of a fine-tuning run: a model, what it is to do, the rows that show it, and how much of it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import Settings
from trivium.finetuning.data_settings import FinetuneData
from trivium.finetuning.task_settings import InstructSettings, TaskSettings
from trivium.peft.settings import ADDED, NoPeftSettings, PeftSettings
from trivium.planner.settings import BaseFormat
from trivium.training.settings import TrainingSettings


class ForgettingSettings(Settings):
    """What the model could do before, measured beside what it learns."""

    paths: Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = (
        "stdlib",
    )
    """General text that the ledger measures: files, folders, globs, hub ids, or `stdlib`, the Python standard library's
    held-out files. Empty: nothing is measured."""
    max_bytes: int = Field(default=64_000, ge=1_000)
    """How much of it, in UTF-8 bytes, spread evenly over its documents."""
    stop_at_loss: float | None = Field(default=None, gt=0)
    """End the run once so many bits per byte (for models without them: nats per token) are lost; null never does."""


class FinetuneRecipe(Settings):
    """A model that learns a task from rows."""

    run: str
    """Directory that the run writes into, relative to where the command is given."""
    stage: Literal["finetune"] = "finetune"
    """The stage of life; says which verb this recipe is for."""
    seed: int = 0
    """Every random draw of the run (new weights, order of the rows, dropout, samples) is derived from it."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where there is one."""
    threads: int = Field(default=0, ge=0)
    """Compute threads; 0 leaves the choice to torch (all cores)."""
    ignore_plan: bool = False
    """Begin even where the memory planned for the run is more than there is."""
    start_from: str
    """The model to begin with: a directory, run directory, GGUF file, hub id or built-in name."""
    base: BaseFormat = "fp32"
    """How weights that are only read are stored: fp32, fp16, bf16, int8, int8_dynamic, int4, int4_asymmetric, nf4. The
    packed ones are for methods of `peft` that leave the model's own weights alone."""
    task: TaskSettings = InstructSettings()
    """What the model is to do, or the task's name alone."""
    data: FinetuneData
    """The rows, and how they become batches."""
    peft: PeftSettings = NoPeftSettings()
    """How much of the model is trained, or the method's name alone; left out: everything."""
    training: TrainingSettings
    """How the weights are learned."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """What is measured of what the model could do before."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts shown in the report with what the model makes of them before and after; held-out rows always are."""
    sample_tokens: int = Field(default=96, ge=1)
    """Most tokens generated for each sample."""

    @model_validator(mode="after")
    def _base_can_be_trained(self) -> FinetuneRecipe:
        if self.base != "fp32" and self.peft.method not in ADDED:
            raise ValueError(
                f"base={self.base} stores weights that are only read, and peft.method={self.peft.method} trains the "
                "model's own: choose a method that adds weights, such as peft=lora, or leave base out"
            )
        return self
