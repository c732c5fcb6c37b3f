"""`trivium generate`: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.cli.settings_help import help_of, settings_of
from trivium.generation.settings import GenerationSettings

app = new_app()


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="The text to continue; of an encoder-decoder, the source.")],
    max_new_tokens: Annotated[int | None, help_of(GenerationSettings, "max_new_tokens")] = None,
    temperature: Annotated[float | None, help_of(GenerationSettings, "temperature")] = None,
    top_k: Annotated[int | None, help_of(GenerationSettings, "top_k")] = None,
    top_p: Annotated[float | None, help_of(GenerationSettings, "top_p")] = None,
    min_p: Annotated[float | None, help_of(GenerationSettings, "min_p")] = None,
    repetition_penalty: Annotated[float | None, help_of(GenerationSettings, "repetition_penalty")] = None,
    no_repeat_ngram_size: Annotated[int | None, help_of(GenerationSettings, "no_repeat_ngram_size")] = None,
    num_beams: Annotated[int | None, help_of(GenerationSettings, "num_beams")] = None,
    length_penalty: Annotated[float | None, help_of(GenerationSettings, "length_penalty")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer (may be given again).")] = None,
    seed: Annotated[int | None, help_of(GenerationSettings, "seed")] = None,
    kv_cache: Annotated[str | None, help_of(GenerationSettings, "kv_cache")] = None,
    speculate: Annotated[int | None, help_of(GenerationSettings, "speculate")] = None,
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Continue a prompt; the text appears as it is made.

    What is not said is as in the settings' defaults (greedy, up to 256 tokens), or, of an encoder-decoder, as its files
    say.

    \b
    Examples:
      trivium generate runs/quickstart/pretrain/model --prompt "def main():"
      trivium generate MODEL --prompt "import " --temperature 0.8 --top-p 0.9 --seed 1 --json
    """
    settings = settings_of(GenerationSettings, locals(), "generate")
    with Output(as_json, quiet) as output:
        from trivium.planner.uses import writing

        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "generate", lambda c: writing(c, prompt, settings), how)
        generation = opened.bundle.generate(prompt, settings, stream=output.write)
        output.result(opened.written(generation), text="\n")
