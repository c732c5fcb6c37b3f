"""`trivium tokenizer`: learn a tokenizer, use it, judge it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError

app = new_app(help="Learn a tokenizer from text, use it, judge it.", no_args_is_help=True)

TokenizerPath = Annotated[Path, typer.Argument(metavar="TOK", help="A tokenizer directory or tokenizer file.")]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES", help="Text files, files of rows with text, folders, globs, or stdlib: Python's own library."
    ),
]


@app.command()
def train(
    files: Files,
    vocab_size: Annotated[
        int,
        typer.Option(help="Entries to learn, special tokens included (they and 256 bytes always have their place)."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write the tokenizer to.")],
    kind: Annotated[
        Literal["decoder", "encoder", "encoder-decoder"],
        typer.Option(help="The kind of model it is for: decides the special tokens and how texts are wrapped."),
    ] = "decoder",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Learn a byte-level BPE tokenizer, and write it as `transformers` reads it.

    \b
    Examples:
      trivium tokenizer train book.txt --vocab-size 8192 --out tokenizer
      trivium tokenizer train stdlib --vocab-size 4096 --out tokenizer --json
      trivium tokenizer train book.txt --vocab-size 8192 --kind encoder --out tokenizer
    """
    from trivium.tokenizer.bpe import Tokenizer

    with Output(as_json, quiet) as output:
        if all(Path(file).suffix == ".txt" and Path(file).is_file() for file in files):  # read piece by piece
            tokenizer = Tokenizer.train(files, vocab_size=vocab_size, kind=kind, progress=output.progress)
        else:
            texts = _texts(files)
            tokenizer = Tokenizer.train(texts=texts, vocab_size=vocab_size, kind=kind, progress=output.progress)
        tokenizer.save(out)
        output.result({"tokenizer": out, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint})


@app.command()
def encode(
    tok: TokenizerPath,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to encode.")],
    special: Annotated[
        bool, typer.Option("--special", help="Read special tokens in the text as tokens, not as plain text.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Text to ids.

    \b
    Example:
      trivium tokenizer encode tokenizer "Hello, world."
    """
    from trivium.tokenizer.bpe import Tokenizer

    with Output(as_json, quiet) as output:
        ids = Tokenizer.load(tok).encode(text, parse_special=special)
        output.result({"ids": ids, "num_tokens": len(ids)}, " ".join(map(str, ids)))


@app.command()
def decode(
    tok: TokenizerPath,
    ids: Annotated[list[int], typer.Argument(metavar="IDS", help="Token ids.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ids to text.

    \b
    Example:
      trivium tokenizer decode tokenizer 39 68 1043
    """
    from trivium.tokenizer.bpe import Tokenizer

    with Output(as_json, quiet) as output:
        tokenizer = Tokenizer.load(tok)
        if unknown := [i for i in ids if not 0 <= i < tokenizer.vocab_size]:
            raise UserError(f"id {unknown[0]}: {tok} has ids 0 to {tokenizer.vocab_size - 1}")
        text = tokenizer.decode(ids)
        output.result({"text": text}, text)


@app.command()
def report(tok: TokenizerPath, files: Files, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """How well a tokenizer suits a text: bytes per token, tokens per word, entries never used.

    \b
    Example:
      trivium tokenizer report tokenizer held_out.txt
    """
    from trivium.tokenizer.bpe import Tokenizer
    from trivium.tokenizer.quality import quality_report

    with Output(as_json, quiet) as output:
        quality = quality_report(Tokenizer.load(tok), _texts(files))
        output.result(quality.to_dict(), "\n".join(f"{name:<20}{value}" for name, value in quality.rows()))


def _texts(files: list[str]) -> Iterator[str]:
    """The documents in `files`."""
    from trivium.config import build_settings
    from trivium.data.prepare import texts
    from trivium.data.settings import DataSettings

    return texts(build_settings(DataSettings, {"train": files}, "FILES"), files, "all")
