"""`trivium classify`: tell the class of a text."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trivium.cli.opening import ModelArgument, open_bundle
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app

app = new_app()


@app.command()
def classify(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to judge.")],
    pair: Annotated[
        str | None,
        typer.Option(help="A second text, for models that judge two: does the first imply it, do they mean the same?"),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Tell the class of a text, or of a pair of texts, and how likely each class is.

    The model must have a classification head. One with a single label is a regression and gives a score.

    \b
    Examples:
      trivium classify MODEL "What a day!"
      trivium classify MODEL "A man sleeps." --pair "Someone is awake." --json
    """
    with Output(as_json, quiet) as output:
        bundle = open_bundle(model, device, output, "classify")
        result = bundle.classify(text, pair)
        likeliest_first = sorted(result.probabilities.items(), key=lambda item: -item[1])
        if len(likeliest_first) == 1:
            ((label, score),) = likeliest_first
            output.result({"label": label, "score": score}, text=f"{label}  {score:.4f}")
            return
        values: dict[str, Any] = {"label": result.label, "probabilities": result.probabilities}
        output.result(values, text="\n".join(f"{share:7.2%}  {label}" for label, share in likeliest_first))
