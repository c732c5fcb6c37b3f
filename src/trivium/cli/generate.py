"""`trivium generate`: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.cli.settings_help import help_of
from trivium.generation.settings import GenerationSettings

app = new_app()


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, a run directory, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, help_of(GenerationSettings, "max_new_tokens")] = 256,
    temperature: Annotated[float, help_of(GenerationSettings, "temperature")] = 0.0,
    top_k: Annotated[int, help_of(GenerationSettings, "top_k")] = 0,
    top_p: Annotated[float, help_of(GenerationSettings, "top_p")] = 1.0,
    min_p: Annotated[float, help_of(GenerationSettings, "min_p")] = 0.0,
    repetition_penalty: Annotated[float, help_of(GenerationSettings, "repetition_penalty")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer (may be given again).")] = None,
    seed: Annotated[int, help_of(GenerationSettings, "seed")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Continue a prompt; the text appears as it is made.

    \b
    Examples:
      trivium generate runs/quickstart/pretrain/model --prompt "def main():"
      trivium generate MODEL --prompt "import " --temperature 0.8 --top-p 0.9 --seed 1 --json
    """
    from trivium.config import build_settings

    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or [],
        "seed": seed,
    }
    settings = build_settings(GenerationSettings, given, "generate")
    with Output(as_json, quiet) as output:
        from trivium.checkpoints.bundle import load
        from trivium.runtime import choose_runtime, prepare_process

        runtime = choose_runtime(device)
        prepare_process(runtime)
        bundle = load(model, device=runtime.device)
        generation = bundle.generate(prompt, settings, stream=output.write)
        output.result(
            {
                "text": generation.text,
                "tokens": generation.tokens,
                "finish_reason": generation.finish_reason,
                "tokens_per_second": generation.tokens_per_second,
            },
            text="\n",
        )
