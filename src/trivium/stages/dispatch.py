"""Which part of the library runs a recipe: told by its `stage`, so that one `resume` serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium import yaml_text
from trivium.config import Settings, build_settings, load_recipe
from trivium.errors import UserError, nearest
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.planner.plan import Plan


def recipe_class(stage: str) -> type[Settings]:
    """The settings of a stage's recipe."""
    if stage == "finetune":
        from trivium.finetuning.recipe import FinetuneRecipe

        return FinetuneRecipe
    from trivium.pretraining.recipe import PretrainRecipe

    return PretrainRecipe


VERBS = ("pretrain", "finetune")
"""The stages; each is also the verb that begins it."""


def stage_of(path: Path) -> str:
    """The stage a recipe is for; that of pretraining where it does not say. UserError for one that does not exist."""
    try:
        value = yaml_text.parse(path.read_text(encoding="utf-8")).value
    except (OSError, UnicodeDecodeError, UserError):
        return "pretrain"  # whoever loads it says what is wrong
    stage = value.get("stage", "pretrain") if isinstance(value, dict) else "pretrain"
    if stage not in VERBS:
        near = nearest(str(stage), VERBS)
        hint = f"did you mean {near}?" if near else f"stages are {', '.join(VERBS)}"
        raise UserError(f"{path}: stage is {stage!r}; {hint}")
    return str(stage)


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """A recipe of whatever stage."""
    return load_recipe(recipe_class(stage_of(path)), path, overrides)


def plan_of_recipe(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """What the run of a recipe will need: `a.b=c` changes the recipe, a plain setting of plans the plan."""
    from trivium.planner.plan import plan_of_config, settings_of_recipe
    from trivium.planner.settings import PlanSettings

    sections = recipe_class(stage_of(path)).model_fields
    plain = [word for word in overrides if _key(word) in PlanSettings.model_fields and _key(word) not in sections]
    recipe: Any = load_any_recipe(path, [word for word in overrides if word not in plain])
    if recipe.stage == "finetune":
        from trivium.finetuning.planning import plan_settings, trained_config
        from trivium.planner.reading import described

        config = described(recipe.start_from).config
        settings, config = plan_settings(recipe, config), trained_config(recipe, config)
    else:
        settings, config = settings_of_recipe(recipe), recipe.model
    stated = settings.model_dump(exclude_unset=True)
    return plan_of_config(config, build_settings(PlanSettings, stated, "plan", plain), str(path))


def _key(override: str) -> str:
    return override.partition("=")[0].replace("-", "_")


def resume(run_dir: str | Path, progress: Progress = SILENT, *, ignore_plan: bool = False) -> dict[str, Any]:
    """Go on with the run in `run_dir` from its newest good checkpoint, under the recipe saved there."""
    from trivium.training.run_directory import RECIPE  # torch comes with it

    saved = Path(run_dir) / RECIPE
    if saved.is_file() and stage_of(saved) == "finetune":
        from trivium.finetuning import run as finetuning

        return finetuning.resume(run_dir, progress, ignore_plan=ignore_plan)
    from trivium.pretraining import run as pretraining

    return pretraining.resume(run_dir, progress, ignore_plan=ignore_plan)
