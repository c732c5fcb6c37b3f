"""`trivium classify`: tell the class of a text."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
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
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
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
        from trivium.planner.uses import reading

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "classify", lambda c: reading(c, [f"{text} {pair or ''}"]), how)
        result = opened.bundle.classify(text, pair)
        memory = opened.measured()
        likeliest_first = sorted(result.probabilities.items(), key=lambda item: -item[1])
        if len(likeliest_first) == 1:
            ((label, score),) = likeliest_first
            output.result({"label": label, "score": score, **memory}, text=f"{label}  {score:.4f}")
            return
        values: dict[str, Any] = {"label": result.label, "probabilities": result.probabilities, **memory}
        output.result(values, text="\n".join(f"{share:7.2%}  {label}" for label, share in likeliest_first))
