"""`trivium resume`: go on with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import IgnorePlanFlag
from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app, run_table

app = new_app()


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.")],
    ignore_plan: IgnorePlanFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Go on with a run that was interrupted, from its last good checkpoint.

    The result is bit for bit that of a run that was never interrupted.

    \b
    Example:
      trivium resume runs/shakespeare-char
    """
    from trivium.stages.dispatch import resume as run

    with Output(as_json, quiet) as output:
        summary = run(run_dir, progress=output.progress, ignore_plan=ignore_plan)
        output.result(summary, run_table(summary))
