"""`trivium seq2seq`: turn a text into another."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.cli.settings_help import help_of, settings_of
from trivium.generation.settings import GenerationSettings

app = new_app()


@app.command()
def seq2seq(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The source: what is to be translated, summarised, ...")],
    num_beams: Annotated[int | None, help_of(GenerationSettings, "num_beams")] = None,
    length_penalty: Annotated[float | None, help_of(GenerationSettings, "length_penalty")] = None,
    no_repeat_ngram_size: Annotated[int | None, help_of(GenerationSettings, "no_repeat_ngram_size")] = None,
    max_new_tokens: Annotated[int | None, help_of(GenerationSettings, "max_new_tokens")] = None,
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Turn a text into another with an encoder-decoder: translate, summarise, fill gaps.

    What the model was trained for decides what comes out; T5 is told by a prefix ("translate English to German: ...")
    and fills <extra_id_0>, <extra_id_1>, ..., each of which stands in the answer before what fills it. What is not said
    is as the model's files say, else one beam.

    \b
    Examples:
      trivium seq2seq MODEL "A dog runs through the snow."
      trivium seq2seq MODEL "summarize: ..." --num-beams 4 --no-repeat-ngram-size 3 --json
    """
    settings = settings_of(GenerationSettings, locals(), "seq2seq")
    with Output(as_json, quiet) as output:
        from trivium.planner.uses import writing

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "seq2seq", lambda c: writing(c, text, settings), how)
        generation = opened.bundle.seq2seq(text, settings, stream=output.write)
        output.result(opened.written(generation), text="\n")
