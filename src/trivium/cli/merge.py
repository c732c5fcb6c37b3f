"""`trivium merge`: an adapter and its base as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError

app = new_app()


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter directory, or a run directory that holds one.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    dtype: Annotated[str, typer.Option(help="How weights are stored: fp32, bf16 or fp16.")] = "fp32",
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Work an adapter into the weights of its base, and write the result as a model of its own.

    The base is opened in full precision, whatever it was trained over. What was written is opened again and compared
    with base and adapter on real text: the largest difference of logits, the divergence (nats for each position), and
    how often both hold the same token for likeliest. lora, rslora, dora and ia3 can be merged.

    \b
    Examples:
      trivium merge runs/instruct --out instruct
      trivium merge runs/instruct/adapter --out instruct --dtype bf16
    """
    with Output(as_json, quiet) as output:
        from trivium.checkpoints.bundle import PRECISIONS
        from trivium.checkpoints.merging import merge_adapter_directory
        from trivium.runtime import choose_runtime, prepare_process

        if dtype not in PRECISIONS:
            raise UserError(f"--dtype {dtype}: use fp32, bf16 or fp16")
        runtime = choose_runtime(device)
        prepare_process(runtime)
        output.result(
            merge_adapter_directory(
                adapter, out, dtype=PRECISIONS[dtype], device=runtime.device, progress=output.progress
            )
        )
