"""`trivium compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app

app = new_app()


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Directories of runs, of any stage.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page, with the runs' ledgers in one plot.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Lay runs side by side: what each learned, what it forgot, how fast it was and what memory it took.

    \b
    Examples:
      trivium compare runs/full runs/lora runs/replay
      trivium compare runs/* --out comparison.html
    """
    with Output(as_json, quiet) as output:
        from trivium.report.comparing import compare as lay_side_by_side
        from trivium.report.comparing import comparison_table, write_comparison

        found = lay_side_by_side(runs)
        if out is not None:
            write_comparison(runs, out)
            output.progress.note(f"written: {out}")
        output.result(found, comparison_table(found))
