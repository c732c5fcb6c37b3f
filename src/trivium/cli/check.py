"""`trivium check`: a recipe tried in small before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app

app = new_app()


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe of fine-tuning.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings to use instead of the recipe's.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Try a recipe in small: two real steps of a narrow copy of the model on the recipe's own rows.

    Checked is what goes wrong without a word: rows of which nothing is learned, a beginning of text that stands
    twice, an end that is never learned, weights without a gradient, an adapter that changes nothing, a resume that
    is not the same run. Exit status 2 where something does not hold, with what to change.

    \b
    Example:
      trivium check recipes/alpaca-lora.yaml
    """
    from trivium.config import load_recipe
    from trivium.errors import UserError
    from trivium.finetuning.recipe import FinetuneRecipe

    with Output(as_json, quiet) as output:
        settings = load_recipe(FinetuneRecipe, recipe, overrides or ())
        from trivium.finetuning.checking import check_recipe

        report = check_recipe(settings, output.progress)
        lines = [f"{'ok' if each.ok else 'FAILED':<8}{each.name}: {each.found}" for each in report.checks]
        output.result(report.to_dict(), "\n".join(lines))
        if not report.ok:
            failed = [each for each in report.checks if not each.ok]
            raise UserError("\n".join(f"{recipe}: {each.name}: {each.found}; {each.cure}" for each in failed))
