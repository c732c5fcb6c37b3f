"""`trivium plan`: what a run will need and how long it will take, before it is begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app
from trivium.cli.settings_help import settings_help
from trivium.errors import UserError

if TYPE_CHECKING:
    from trivium.planner.plan import Plan

app = new_app()


@app.command()
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|RECIPE.yaml",
            help="A model directory, config.json, .gguf file, hub id or built-in name, of which only the config is "
            "read; or a recipe.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings of the plan, listed below.")
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(
            help="A number of parameters in the place of a model: the rule of thumb, or, with settings, a usual model."
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show planned and measured memory of the runs of this machine.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Memory and time of a run before it is begun: does it fit, and what would make it fit?

    \b
    Examples:
      trivium plan smollm2-135m-instruct stage=finetune peft=lora precision=bf16
      trivium plan config.json stage=grpo rows_per_micro_batch=8 device=cuda memory=80GB fsdp_ways=8
      trivium plan recipes/shakespeare-char.yaml
      trivium plan --params 1e9
    """
    words = [*([model] if model is not None else []), *(settings or [])]
    with Output(as_json, quiet) as output:
        if history:
            from trivium.planner.history import history_report, history_table

            if words or params is not None:
                raise UserError("--history shows all runs: leave everything else out")
            report = history_report()
            output.result(report, history_table(report))
            return
        result = _plan(words, params)
        from trivium.planner.table import plan_table

        output.result(result.to_dict(), plan_table(result))


def _plan(words: list[str], params: float | None) -> Plan:
    """The plan of what was named."""
    from trivium.config import build_settings
    from trivium.planner.plan import plan_of_described, plan_of_number
    from trivium.planner.reading import described
    from trivium.planner.settings import PlanSettings

    if params is not None:
        return plan_of_number(params, build_settings(PlanSettings, {}, "plan", words))
    name, *overrides = words or [""]
    if not name or "=" in name:
        raise UserError("name a model or a recipe before the settings, or give --params (see `trivium plan --help`)")
    if name.endswith((".yaml", ".yml")):
        from trivium.stages.dispatch import plan_of_recipe

        return plan_of_recipe(Path(name), overrides)
    return plan_of_described(described(name), build_settings(PlanSettings, {}, "plan", overrides), name)


def after_help() -> str:
    """Every setting, for `trivium plan --help`."""
    from trivium.planner.settings import PlanSettings as settings

    return settings_help(settings)
