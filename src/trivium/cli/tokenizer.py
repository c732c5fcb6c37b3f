"""`trivium tokenizer`: learn a tokenizer, use it, judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import JsonFlag, Output, QuietFlag, new_app
from trivium.errors import UserError

app = new_app(help="Learn a tokenizer from text, use it, judge it.", no_args_is_help=True)

TokenizerPath = Annotated[Path, typer.Argument(metavar="TOK", help="A tokenizer directory or tokenizer.json.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILES...", help="Text files, or files of rows with text.")]


@app.command()
def train(
    files: Files,
    vocab_size: Annotated[int, typer.Option(help="Entries to learn, special tokens included (at least 257).")],
    out: Annotated[Path, typer.Option(help="Directory to write the tokenizer to.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Learn a byte-level BPE tokenizer, and write it as `transformers` reads it.

    \b
    Examples:
      trivium tokenizer train book.txt --vocab-size 8192 --out tokenizer
      trivium tokenizer train corpus/*.txt --vocab-size 32768 --out tokenizer --json
    """
    from trivium.tokenizer.bpe import Tokenizer

    with Output(as_json, quiet) as output:
        tokenizer = Tokenizer.train(files, vocab_size=vocab_size, progress=output.progress)
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
    ids: Annotated[list[int], typer.Argument(metavar="IDS...", help="Token ids.")],
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
        quality = quality_report(Tokenizer.load(tok), files, progress=output.progress)
        output.result(quality)
