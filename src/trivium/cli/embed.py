"""`trivium embed`: turn texts into vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError

app = new_app()

# How much of a vector and of a text is shown to people; --json has all.
NUMBERS_SHOWN, CHARACTERS_SHOWN = 4, 60


@app.command()
def embed(
    model: ModelArgument,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="The texts.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option(help="A .txt file with a text on each line, or rows with text (jsonl, csv, ...).")
    ] = None,
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Turn texts into vectors of length 1: close texts, close vectors (their dot product is the cosine).

    A vector is the mean of the model's last hidden states. Use an encoder that was trained for it (minilm-l6); a
    decoder's states are a makeshift.

    \b
    Examples:
      trivium embed minilm-l6 "A cat sleeps." "A kitten naps." --json
      trivium embed MODEL --file questions.txt --json > vectors.json
    """
    if bool(texts) == (file is not None):
        raise UserError("give texts, or --file with texts (and not both)")
    with Output(as_json, quiet) as output:
        given = texts or _texts_of(file)
        from trivium.planner.uses import reading

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "embed", lambda c: reading(c, given), how)
        bundle = opened.bundle
        from trivium.generation.embed import embed as embedded

        vectors = embedded(bundle.model, bundle.tokenizer, given, progress=output.progress).tolist()
        lines = [f"dimensions  {bundle.config.width}"]
        for text, vector in zip(given, vectors, strict=True):
            shown = " ".join(f"{number:+.4f}" for number in vector[:NUMBERS_SHOWN])
            lines.append(f"{shown} ...  {' '.join(text.split())[:CHARACTERS_SHOWN]}")
        values = {"vectors": vectors, "dimensions": bundle.config.width, **opened.measured()}
        output.result(values, text="\n".join(lines))


def _texts_of(file: Path | None) -> list[str]:
    from trivium.data.readers import read_rows
    from trivium.data.rows import text_of

    assert file is not None
    return [text_of(row) for row in read_rows(file, text_layout="line")]
