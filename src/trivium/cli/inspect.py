"""`trivium inspect`: the rows of a recipe as the model sees them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app

app = new_app()

# What is learned, on a terminal: green.
COLOURED = ("\x1b[32m", "\x1b[0m")


@app.command()
def inspect(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe of fine-tuning.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings to use instead of the recipe's.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows shown of each source.")] = 3,
    source: Annotated[str | None, typer.Option(help="Show this source only.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show rows as the model sees them: special tokens and all, what is learned in green ([[ ]] where the output is no
    terminal), how many tokens are learned, and which rows are left out and why.

    \b
    Example:
      trivium inspect recipes/alpaca-lora.yaml --rows 2
    """
    from trivium.config import load_recipe
    from trivium.errors import UserError
    from trivium.finetuning.recipe import FinetuneRecipe
    from trivium.stages.dispatch import stage_of

    with Output(as_json, quiet) as output:
        if (stage := stage_of(recipe)) != "finetune":
            raise UserError(
                f"{recipe}: its stage is {stage}, where all text is learned; inspect shows rows of stage finetune"
            )
        settings = load_recipe(FinetuneRecipe, recipe, overrides or ())
        from trivium.finetuning.inspecting import inspect as inspect_recipe
        from trivium.finetuning.inspecting import marked

        found = inspect_recipe(settings, rows, source, output.progress)
        marks = COLOURED if sys.stdout.isatty() else ("[[", "]]")
        facts = [f"{name.replace('_', ' ')}: {value}" for name, value in found.facts.items()]
        shown = [marked(row, *marks) for row in found.rows]
        output.result(found.to_dict(), "\n\n".join([*shown, "\n".join([*found.notes, ", ".join(facts)])]))
