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


def open_bundle(model: str, device: str, output: Output, verb: str | None = None) -> Bundle:
    """The model on its device; what of it could not be followed is said as notes.

    A model that `verb` cannot use is refused by its config, before its weights are read.
    """
    from trivium.checkpoints.bundle import load
    from trivium.checkpoints.config_files import read_config
    from trivium.checkpoints.resolve import resolve_model
    from trivium.generation.purposes import refuse_use
    from trivium.runtime import choose_runtime, prepare_process

    runtime = choose_runtime(device)
    prepare_process(runtime)
    path = resolve_model(model)
    if verb is not None and path.is_dir():
        refuse_use(read_config(path)[1], verb)
    bundle = load(path, device=runtime.device)
    for note in bundle.notes:
        output.progress.note(note)
    return bundle
