"""`trivium quickstart`: from nothing to a trained, measured language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import IgnorePlanFlag
from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app, table

app = new_app()


@app.command()
def quickstart(
    family: Annotated[str, typer.Option(help="Which kind of model: decoder, encoder, or encoder-decoder.")] = "decoder",
    out: Annotated[Path, typer.Option(help="Directory to write the run to.")] = Path("runs/quickstart"),
    minutes: Annotated[float, typer.Option(help="About how long it may take on this machine.")] = 5.0,
    ignore_plan: IgnorePlanFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """From nothing to a trained, measured language model: nothing is downloaded.

    Learns a tokenizer and a model from the text every machine has, the Python standard library; measures it
    on text held out; lets it write; and leaves a report and a model that `transformers` opens. An encoder also
    learns to tell packages apart by their code, an encoder-decoder to write docstrings. It begins with the plan (memory
    by parts, time) and ends with the model in 8 bits and what that costs, measured.

    \b
    Examples:
      trivium quickstart
      trivium quickstart --minutes 30 --out runs/half-an-hour
      trivium quickstart --family encoder --out runs/encoder
    """
    from trivium.quickstart.run import quickstart as run

    with Output(as_json, quiet) as output:
        summary = run(out, minutes, family, output.progress, ignore_plan=ignore_plan)
        rows = {**summary["table"], "saved in": summary["model"], "report": summary["report"]}
        lines = [table(rows), "Try next:", *(f"  {command}" for command in summary["next"])]
        output.result(summary, "\n".join(lines))
