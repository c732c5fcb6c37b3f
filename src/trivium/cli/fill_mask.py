"""`trivium fill-mask`: fill the [MASK] in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app

if TYPE_CHECKING:
    from trivium.generation.fill_mask import Candidate

app = new_app()


@app.command()
def fill_mask(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A text with [MASK] where a word is missing.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many candidates to show for each blank, best first.")] = 5,
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fill the [MASK] in a text with the likeliest tokens, as a masked language model (an encoder) sees it.

    [MASK] may be written as such, whatever the model's own mask token is. One blank is one token, which may be less
    than a word; of several blanks each is judged by itself.

    \b
    Examples:
      trivium fill-mask MODEL "The teacher [MASK] the student."
      trivium fill-mask MODEL "Paris is the [MASK] of [MASK]." --top-k 3 --json
    """
    with Output(as_json, quiet) as output:
        from trivium.planner.uses import reading

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "fill-mask", lambda c: reading(c, [text]), how)
        bundle = opened.bundle
        from trivium.generation.fill_mask import fill_masks

        masks = fill_masks(bundle.model, bundle.tokenizer, text, top_k)
        values: dict[str, Any] = {"candidates": [_plain(candidate) for candidate in masks[0]]}
        if len(masks) > 1:
            values["masks"] = [[_plain(candidate) for candidate in candidates] for candidates in masks]
        output.result({**values, **opened.measured()}, text="\n\n".join(map(_table, masks)))


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {"token": candidate.token, "probability": candidate.probability, "text": candidate.text}


def _table(candidates: Sequence[Candidate]) -> str:
    """Probability, token and filled text, one candidate a line."""
    width = max(len(candidate.token) for candidate in candidates)
    return "\n".join(f"{c.probability:7.2%}  {c.token:<{width}}  {c.text}" for c in candidates)
