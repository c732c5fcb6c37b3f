"""How verbs open a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.output import Output

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model directory, a run directory, a .gguf file, a hub id, or a built-in name (smollm2-135m-instruct, "
        "minilm-l6).",
    ),
]

# Said beside an empty result, which looks like none.
EMPTY = "(the text is empty)"


def open_bundle(model: str, device: str, output: Output) -> Bundle:
    """The model on its device; what of it could not be followed is said as notes."""
    from trivium.checkpoints.bundle import load
    from trivium.runtime import choose_runtime, prepare_process

    runtime = choose_runtime(device)
    prepare_process(runtime)
    bundle = load(model, device=runtime.device)
    for note in bundle.notes:
        output.progress.note(note)
    return bundle
