"""`trivium report`: one self-contained page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app

app = new_app()


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write RUN_DIR/report.html: what was trained on what, how it went, and what to do next.

    It can be written while the run is going on, and again later.

    \b
    Example:
      trivium report runs/quickstart/pretrain
    """
    from trivium.report.page import write_report

    with Output(as_json, quiet) as output:
        page = write_report(run_dir)
        output.result({"report": page}, str(page))
