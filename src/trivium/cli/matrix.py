"""`trivium matrix`: what works with what, as tested."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app

app = new_app()


@app.command()
def matrix(
    markdown: Annotated[bool, typer.Option("--markdown", help="As markdown, the form of docs/matrix.md.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Families, objectives and formats against what can be done with them.

    A cell says yes only if every test behind it ran and passed when the release was made; --json names them.

    \b
    Examples:
      trivium matrix
      trivium matrix --json
    """
    from trivium.matrix import as_markdown, as_text, read_matrix

    with Output(as_json, quiet) as output:
        found = read_matrix()
        output.result(found, as_markdown(found).rstrip("\n") if markdown else as_text(found))
