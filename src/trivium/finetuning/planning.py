"""What a fine-tuning run will need, said before it begins, and what it needed, kept beside the plan.

The plan is the planner's `finetune` stage of the model's config and the recipe; see `planner/stages.py` for what it
counts. Rows are taken to be as long as they may be, and all of their tokens to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from trivium.finetuning.recipe import FinetuneRecipe
from trivium.models.config import Head, ModelConfig
from trivium.models.counts import num_parameters
from trivium.peft.settings import LowRankSettings
from trivium.planner.history import PlannedRun, record_run
from trivium.planner.memory import FRAMEWORK_BYTES
from trivium.planner.parts import Parts
from trivium.planner.peft_counts import target_shapes
from trivium.planner.settings import Peft, PlanSettings
from trivium.planner.stages import stage_phases
from trivium.planner.statement import IN_THE_RECIPE, applicable, available_bytes, processes_here, state_plan
from trivium.planner.suggestions import fullest, suggestions
from trivium.progress import Progress
from trivium.runtime import Runtime, give_back_freed_memory
from trivium.training.memory import current_bytes

# What a recipe of this stage can say beside those of others.
OWN_IN_THE_RECIPE = {"peft": "peft={}", "base": "base={}"}
HEADS: dict[str, Head] = {"classify": "classification", "regress": "scalar", "tag": "token_classification"}


def plan_settings(recipe: FinetuneRecipe, config: ModelConfig) -> PlanSettings:
    """The planner's words for a recipe. Methods it does not tell apart are planned as training everything."""
    data, training, peft = recipe.data, recipe.training, recipe.peft
    known = peft.method in get_args(Peft)
    stated: dict[str, Any] = {
        "stage": "finetune",
        "precision": training.precision,
        "rows_per_micro_batch": min(data.rows_per_micro_batch, data.rows_per_step),
        "rows_per_step": data.rows_per_step,
        "sequence_length": min(data.sequence_length, config.max_positions),
        "gradient_checkpointing": training.gradient_checkpointing,
        "packed_documents": True,
        "tokens": training.steps * data.rows_per_step * data.sequence_length,
        "peft": peft.method if known else "none",
    }
    if recipe.base != "fp32":
        stated["base"] = recipe.base
    for ours, theirs in (("rank", "rank"), ("bottleneck", "bottleneck"), ("virtual_tokens", "virtual_tokens")):
        if (value := getattr(peft, ours, None)) is not None:
            stated[theirs] = value
    if peft.method == "last_layers":
        stated["last_layers"] = peft.layers
    if isinstance(peft, LowRankSettings):
        stated["targets"] = planned_targets(peft.targets, config)
    return PlanSettings(**stated)


def planned_targets(targets: str | Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The kinds of linear layers that patterns name."""
    known = tuple(target_shapes(config))
    if targets == "auto":
        return known
    return tuple(name for name in known if any(name in pattern for pattern in targets)) or known


def trained_config(recipe: FinetuneRecipe, config: ModelConfig) -> ModelConfig:
    """The shape with the head that the task is likely to put on it."""
    by = getattr(recipe.task, "by", "head")
    head = HEADS.get(recipe.task.name)
    if head is None or config.head != "lm" or by == "text" or (by == "auto" and config.kind != "encoder"):
        return config
    return config.model_copy(update={"head": head, "labels": ("a", "b"), "head_hidden": "none"})


def planned_memory(recipe: FinetuneRecipe, config: ModelConfig, device: str = "cpu", held_bytes: int = 0) -> Parts:
    """What a training step will need, in a process that already holds `held_bytes` of other things."""
    settings = plan_settings(recipe, config)
    on_card = device.startswith("cuda")
    settings = settings.model_copy(update={"device": "cuda" if on_card else "cpu"})
    parts = fullest(stage_phases(trained_config(recipe, config), settings))
    if on_card:
        return parts
    return replace(parts, framework_bytes=parts.framework_bytes + max(0, held_bytes - FRAMEWORK_BYTES))


def state_run(recipe: FinetuneRecipe, config: ModelConfig, runtime: Runtime, progress: Progress) -> Parts:
    """Say the run's plan; UserError where it does not fit and the recipe does not insist."""
    give_back_freed_memory(everything=True)
    plan = planned_memory(recipe, config, runtime.device, current_bytes(runtime.torch_device()))

    def cures() -> Sequence[str]:
        there = available_bytes(runtime.device) // processes_here(runtime)
        found = suggestions(trained_config(recipe, config), plan_settings(recipe, config), there)
        return applicable(found, {**IN_THE_RECIPE, **OWN_IN_THE_RECIPE})

    state_plan(
        plan,
        "this run",
        device=runtime.device,
        processes=processes_here(runtime),
        ignore=recipe.ignore_plan,
        override="ignore_plan=true",
        suggest=cures,
        progress=progress,
    )
    return plan


def record_measured(
    recipe: FinetuneRecipe, config: ModelConfig, runtime: Runtime, planned_bytes: int, peak: int, progress: Progress
) -> None:
    """Add the pair of a finished run to the history."""
    method = "" if recipe.peft.method == "none" else f" {recipe.peft.method}"
    run = PlannedRun(
        stage=f"finetune{method}",
        model=recipe.run,
        kind=config.kind,
        parameters=num_parameters(config),
        precision=f"{recipe.base}/{recipe.training.precision}" if recipe.base != "fp32" else recipe.training.precision,
        device=runtime.device,
        rows=min(recipe.data.rows_per_micro_batch, recipe.data.rows_per_step),
        length=recipe.data.sequence_length,
        planned_bytes=planned_bytes,
        peak_bytes=peak,
    )
    record_run(run, progress)
