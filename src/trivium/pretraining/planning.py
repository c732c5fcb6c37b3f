"""What a pretraining run will need, said before it begins; and what it needed, kept beside the plan.

A run whose plan does not fit is refused before anything is written (`planner/statement.py`), unless the recipe says
`ignore_plan: true`. Processes that share a machine share its memory; each card has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trivium.data.objectives_settings import MaskedSettings, SpansSettings
from trivium.models.counts import num_parameters
from trivium.planner.history import PlannedRun, record_run
from trivium.planner.memory import FRAMEWORK_BYTES, MemoryPlan, estimate
from trivium.planner.statement import IN_THE_RECIPE, applicable, available_bytes, processes_here, state_plan
from trivium.pretraining.recipe import PretrainRecipe
from trivium.progress import Progress
from trivium.runtime import Runtime, give_back_freed_memory
from trivium.training.memory import current_bytes


def planned_memory(recipe: PretrainRecipe, device: str = "cpu", held_bytes: int = 0) -> MemoryPlan:
    """What the recipe's training step will need, in a process that already holds `held_bytes` of other things."""
    on_card = device.startswith("cuda")
    rows, longest = micro_batch_rows(recipe), recipe.data.sequence_length
    length = target_length(recipe)
    share = recipe.objective.mask_share if isinstance(recipe.objective, MaskedSettings) else None
    return estimate(
        recipe.model,
        rows_per_micro_batch=rows,
        sequence_length=length,
        source_length=longest,
        targets=None if share is None else int(share * rows * longest),
        precision=recipe.training.precision,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        cross_entropy_chunk_tokens=recipe.training.cross_entropy_chunk_tokens,
        packed_documents=True,
        device="cuda" if on_card else "cpu",
        framework_bytes=None if on_card else max(FRAMEWORK_BYTES, held_bytes),
    )


def memory_from_now(recipe: PretrainRecipe, runtime: Runtime) -> MemoryPlan:
    """The plan of a run that begins now: what earlier work of the process left in it, or text, takes its share."""
    give_back_freed_memory(everything=True)
    return planned_memory(recipe, runtime.device, current_bytes(runtime.torch_device()))


def target_length(recipe: PretrainRecipe) -> int:
    """Positions of a row of the decoder; of spans that are cut out, what is left of a text fills the source."""
    length = recipe.data.sequence_length
    if not isinstance(recipe.objective, SpansSettings):
        return length
    cut, spans = recipe.objective.noise_share, recipe.objective.noise_share / recipe.objective.mean_span
    return min(length, math.ceil(length / (1 - cut + spans) * (cut + spans)) + 1)  # and the mark at the end


def micro_batch_rows(recipe: PretrainRecipe) -> int:
    """Rows that are computed together."""
    return min(recipe.data.rows_per_micro_batch, recipe.data.rows_per_step)


def state_run(recipe: PretrainRecipe, runtime: Runtime, progress: Progress) -> MemoryPlan:
    """Say the run's plan; UserError where it does not fit and the recipe does not insist."""
    plan = memory_from_now(recipe, runtime)

    def cures() -> Sequence[str]:
        from trivium.planner.plan import settings_of_recipe
        from trivium.planner.suggestions import suggestions

        there = available_bytes(runtime.device) // processes_here(runtime)
        return applicable(suggestions(recipe.model, settings_of_recipe(recipe), there), IN_THE_RECIPE)

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
    recipe: PretrainRecipe, runtime: Runtime, planned_bytes: int, peak_bytes: int, progress: Progress
) -> None:
    """Add the pair of a finished run to the history."""
    run = PlannedRun(
        stage="pretrain",
        model=recipe.run,
        kind=recipe.model.kind,
        parameters=num_parameters(recipe.model),
        precision=recipe.training.precision,
        device=runtime.device,
        rows=micro_batch_rows(recipe),
        length=recipe.data.sequence_length,
        planned_bytes=planned_bytes,
        peak_bytes=peak_bytes,
    )
    record_run(run, progress)
