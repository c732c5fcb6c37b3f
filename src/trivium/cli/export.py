"""`trivium export`: a model for other software."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import ModelArgument, open_bundle
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app, table

app = new_app()


@app.command()
def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option(help="hf (a directory, as transformers and vLLM read it) or gguf (llama.cpp).")],
    out: Annotated[Path, typer.Option(help="The directory, or the file whose name ends in .gguf.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="How weights are stored: fp32, fp16, bf16; for gguf also q8_0, q4_0. [default: fp32; gguf: fp16]"
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read it back and compare it with the source.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Write a model as a Hugging Face directory or a GGUF file.

    With --verify it is read back and compared with the source on 32 prompts: divergence of the scores, agreement of
    the likeliest token, greedy texts. The figures are written into its README, and the exit status is 1 if it is
    further from the source than its dtype explains.

    \b
    Examples:
      trivium export runs/quickstart/pretrain/model --to gguf --out model.gguf --verify
      trivium export smollm2-135m-instruct --to hf --out smollm2 --dtype bf16
    """
    with Output(as_json, quiet) as output:
        from trivium.checkpoints.export import export as write
        from trivium.checkpoints.export import stored_dtype

        stored_dtype(to, out, dtype)  # a mistake is told before a model is loaded
        bundle = open_bundle(model, device, output)
        place = str(bundle.model.device)
        done = write(bundle, to, out, dtype=dtype, verify=verify, device=place, progress=output.progress)
        values = {
            "path": done.path,
            "readme": done.readme,
            "format": to,
            "dtype": done.dtype,
            "num_bytes": done.num_bytes,
        }
        if done.verification is None:
            output.result(values)
        else:
            values["verified"] = done.passed
            text = table({**values, **done.verification.rows()})
            output.result({**values, **done.verification.to_json()}, text=text)
        return 1 if done.passed is False else 0
