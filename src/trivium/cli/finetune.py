"""`trivium finetune`: teach a model a task, as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import IgnorePlanFlag
from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app, run_table
from trivium.cli.settings_help import settings_help

app = new_app()


@app.command()
def finetune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings to use instead of the recipe's.")
    ] = None,
    ignore_plan: IgnorePlanFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Teach a model a task from rows, as a recipe says: all of it, or a small part.

    The run directory receives the resolved recipe, metrics, checkpoints, an adapter or a model, a ledger of what
    was forgotten, and a report. A run that was interrupted goes on where it stopped when the same command is given
    again, or with `trivium resume`.

    \b
    Examples:
      trivium finetune recipes/alpaca-lora.yaml
      trivium finetune recipes/alpaca-lora.yaml peft=dora training.steps=50 run=runs/dora
      trivium finetune recipes/sst2-minilm.yaml data.train=train.tsv
    """
    from trivium.config import load_recipe
    from trivium.finetuning.recipe import FinetuneRecipe

    with Output(as_json, quiet) as output:
        settings = load_recipe(FinetuneRecipe, recipe, overrides or ())
        from trivium.finetuning.run import finetune as run

        summary = run(settings, progress=output.progress, ignore_plan=ignore_plan)
        output.result(summary, run_table(summary))


def after_help() -> str:
    """Every setting of the recipe, for `trivium finetune --help`."""
    from trivium.finetuning.recipe import FinetuneRecipe

    return settings_help(FinetuneRecipe)
