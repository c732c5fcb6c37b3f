"""`trivium metric`: numbers from a model or from predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app

app = new_app(no_args_is_help=True)


@app.callback()
def metric() -> None:
    """Numbers from a model or from predictions."""


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, a run directory, or a hub id.")],
    file: Annotated[Path, typer.Option(help="Text, or rows with text, to be predicted.")],
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """How well a model predicts a text: perplexity, and bits per byte, which compares any two models.

    Every token is scored once, in windows of the model's context length. A .txt file is one document; of a
    file of rows each row is one.

    \b
    Example:
      trivium metric perplexity runs/quickstart/pretrain/model --file held_out.txt
    """
    from trivium.checkpoints.bundle import load
    from trivium.data.readers import read_rows
    from trivium.data.rows import text_of
    from trivium.generation.scoring import score_documents, sum_scores
    from trivium.runtime import choose_runtime, prepare_process

    with Output(as_json, quiet) as output:
        texts = [text_of(row) for row in read_rows(file)]
        runtime = choose_runtime(device)
        prepare_process(runtime)
        bundle = load(model, device=runtime.device)
        scores = score_documents(bundle.model, bundle.tokenizer, texts, progress=output.progress)
        output.result(sum_scores(scores).perplexity().to_json())
