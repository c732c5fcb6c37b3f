"""`trivium pretrain`: train a model on raw text, as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import IgnorePlanFlag
from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app, run_table
from trivium.cli.settings_help import settings_help

app = new_app()


@app.command()
def pretrain(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings to use instead of the recipe's.")
    ] = None,
    ignore_plan: IgnorePlanFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a model on raw text, as a recipe says.

    The run directory receives the resolved recipe, metrics, checkpoints, the model and a report. A run that
    was interrupted goes on where it stopped when the same command is given again, or with `trivium resume`.

    \b
    Examples:
      trivium pretrain recipes/shakespeare-char.yaml
      trivium pretrain recipes/shakespeare-char.yaml training.steps=200 run=runs/short
    """
    from trivium.config import load_recipe
    from trivium.pretraining.recipe import PretrainRecipe

    with Output(as_json, quiet) as output:
        settings = load_recipe(PretrainRecipe, recipe, overrides or ())
        from trivium.pretraining.run import pretrain as run

        summary = run(settings, progress=output.progress, ignore_plan=ignore_plan)
        output.result(summary, run_table(summary))


def after_help() -> str:
    """Every setting of the recipe, for `trivium pretrain --help`."""
    from trivium.pretraining.recipe import PretrainRecipe

    return settings_help(PretrainRecipe)
