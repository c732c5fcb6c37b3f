"""`trivium quantize`: a model in fewer bits, with its measured cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.opening import ModelArgument, open_bundle
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError
from trivium.quantization.schemes import FORMATS, scheme_for

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle

app = new_app()

MEASURED, PLOT = "quantization.json", "quantization.png"


@app.command()
def quantize(
    model: ModelArgument,
    to: Annotated[str, typer.Option(help=f"How matrices are stored: {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    method: Annotated[
        str, typer.Option(help="How codes are found: nearest (rounding), gptq or awq (which look at text).")
    ] = "nearest",
    group_size: Annotated[
        int | None,
        typer.Option(help="Inputs that share a scale, in 4-bit formats: 32, 64 or 128. [default: 32; nf4: 64]"),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A module left as it is, by name or pattern: '*.down' (may be given again)."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text for gptq and awq, or rows with text. [default: the standard library]")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to measure the cost on, or rows. [default: the standard library]")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Whether the cost is measured.")] = True,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Store a model in fewer bits, and measure what that costs.

    The directory is opened like any other (`trivium generate OUT ...`). The measured cost, the original beside the
    quantized model on the same text, is printed and kept in it: quantization.json, a plot, the README.

    \b
    Examples:
      trivium quantize smollm2-135m-instruct --to int8 --out smollm2-int8
      trivium quantize runs/base/model --to int4 --method gptq --out base-int4 --text held_out.txt
    """
    changes: dict[str, Any] = {"method": method, "keep": keep or []}
    scheme = scheme_for(to, **changes, **({} if group_size is None else {"group_size": group_size}))
    with Output(as_json, quiet) as output:
        from trivium.checkpoints.bundle import quantize as quantized_copy
        from trivium.checkpoints.calibration_text import measuring_text
        from trivium.checkpoints.directory import replaceable
        from trivium.quantization.quantize import tensors_bytes

        # Mistakes are told before a model is loaded.
        _refuse_itself(model, replaceable(out))
        given = None if calibration is None else _texts(calibration)
        wanted = [] if not measure else [measuring_text()] if text is None else _texts(text)
        original = open_bundle(model, device, output)
        made = quantized_copy(original, scheme, calibration=given, progress=output.progress)
        report, table, files = _measured(original, made, wanted, output) if measure else ({}, "", {})
        made.save(out, notes=_notes(model, table, text), extra_files=files)
        values = {
            "model": out,
            "format": scheme.format,
            "bytes": tensors_bytes(made.model),
            "original_bytes": tensors_bytes(original.model),
            "measured": report,
        }
        output.result(values, text=f"{table}\n{out}\n" if table else f"{out}\n")


def _refuse_itself(model: str, out: Path) -> None:
    """Refuse to write the quantized model over the original, which could not be had back."""
    from trivium.checkpoints.resolve import resolve_model

    if resolve_model(model).resolve() == out.resolve():
        raise UserError(f"--out {out} is the model itself, which is kept: choose another directory")


def _texts(file: Path) -> list[str]:
    """A .txt file as one text, a file of rows as one each."""
    from trivium.data.readers import read_rows
    from trivium.data.rows import text_of

    return [text_of(row) for row in read_rows(file)]


def _measured(
    original: Bundle, made: Bundle, texts: list[str], output: Output
) -> tuple[dict[str, Any], str, dict[str, str | bytes]]:
    """What it costs: as numbers, as a table, and as the files that tell it."""
    from trivium.report.compression import compression_report, compression_table
    from trivium.report.compression_plots import compression_plot

    report = compression_report(original, made, texts, progress=output.progress)
    rows = [("", "original", "quantized"), *compression_table(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = (f"{name:<{widths[0]}}  {before:<{widths[1]}}  {after}".rstrip() for name, before, after in rows)
    files: dict[str, str | bytes] = {MEASURED: json.dumps(report, indent=2) + "\n", PLOT: compression_plot(report)}
    return report, "\n".join(lines) + "\n", files


def _notes(model: str, table: str, text: Path | None) -> str:
    """The section of the README."""
    made = f"Made from `{model}` by `trivium quantize`."
    if not table:
        return made
    block = "\n".join(f"    {line}" for line in table.splitlines())
    on = "the standard library of Python" if text is None else text.name
    return f"{made} What it costs, measured on {on}:\n\n{block}\n\n![What it costs]({PLOT})"
