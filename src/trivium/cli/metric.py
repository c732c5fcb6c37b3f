"""`trivium metric`: numbers from a model or from predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.opening import DtypeOption, IgnorePlanFlag, ModelArgument, Opening, QuantizeOption, open_planned
from trivium.cli.output import DeviceOption, JsonFlag, Output, QuietFlag, new_app, table
from trivium.errors import UserError

app = new_app(no_args_is_help=True)

Predictions = Annotated[Path, typer.Option(help="What a model wrote: a text file with one prediction on each line.")]
References = Annotated[
    list[Path],
    typer.Option(help="What is right: a text file with as many lines (again, where each has several right answers)."),
]


@app.callback()
def metric() -> None:
    """Numbers from a model or from predictions."""


@app.command()
def perplexity(
    model: ModelArgument,
    file: Annotated[Path, typer.Option(help="Text, or rows with text, to be predicted.")],
    dtype: DtypeOption = "fp32",
    quantize: QuantizeOption = None,
    ignore_plan: IgnorePlanFlag = False,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """How well a decoder predicts a text: perplexity, and bits per byte, which compares any two models.

    Every token is scored once, in windows of the model's context length. A .txt file is one document; of a
    file of rows each row is one. Masked models and encoder-decoders have no perplexity of a text.

    \b
    Example:
      trivium metric perplexity runs/quickstart/pretrain/model --file held_out.txt
    """
    from trivium.data.readers import read_rows
    from trivium.data.rows import text_of
    from trivium.generation.scoring import score_documents, sum_scores
    from trivium.planner.uses import reading

    with Output(as_json, quiet) as output:
        texts = [text_of(row) for row in read_rows(file)]
        how = Opening(device, dtype, quantize, ignore_plan)
        opened = open_planned(model, output, "perplexity", lambda c: reading(c, texts, windows=True), how)
        scores = score_documents(opened.bundle.model, opened.bundle.tokenizer, texts, progress=output.progress)
        output.result({**sum_scores(scores).perplexity().to_json(), **opened.measured()})


@app.command()
def rouge(
    predictions: Predictions, references: References, as_json: JsonFlag = False, quiet: QuietFlag = False
) -> None:
    """How much of the right texts' words, word pairs and longest common runs the predictions hold (Lin, 2004).

    \b
    Example:
      trivium metric rouge --predictions summaries.txt --references right.txt --json
    """
    from trivium.metrics.rouge import rouge as scored

    with Output(as_json, quiet) as output:
        result = scored(*_lines(predictions, references))
        output.result(result, text=table({name: score["fmeasure"] for name, score in result.items()}))


@app.command()
def bleu(predictions: Predictions, references: References, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """How much predicted translations have in common with right ones, 0 to 100 (Papineni et al., 2002; sacrebleu).

    \b
    Example:
      trivium metric bleu --predictions translations.txt --references right.txt --json
    """
    from trivium.metrics.bleu import bleu as scored

    with Output(as_json, quiet) as output:
        output.result(scored(*_lines(predictions, references)))


@app.command()
def classification(
    predictions: Predictions,
    references: Annotated[Path, typer.Option(help="What is right: a text file with one class on each line.")],
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """How well classes are told: accuracy, F1 (macro, micro, weighted, of each class), Matthews' correlation.

    Macro is the mean over all classes; white space around a class does not matter, and its case does.

    \b
    Example:
      trivium metric classification --predictions told.txt --references right.txt
    """
    from trivium.metrics.classification import classification as scored

    with Output(as_json, quiet) as output:
        told, right = _lines(predictions, [references])
        if not told:
            raise UserError(f"{predictions}: is empty, it holds no class")
        result = scored([line.strip() for line in told], [line.strip() for (line,) in right])
        means = {name: value for name, value in result.items() if name != "per_class"}
        per_class = {f"f1 of {name}": score["f1"] for name, score in result["per_class"].items()}
        output.result(result, text=table({**means, **per_class}))


def _lines(predictions: Path, references: list[Path]) -> tuple[list[str], list[list[str]]]:
    """Predictions, and for each of them the right answers; every file must have equally many lines."""
    from trivium.data.streams import read_lines

    files = {file: [line.rstrip("\r\n") for _, line in read_lines(file)] for file in (predictions, *references)}
    for file, lines in files.items():
        if len(lines) != len(files[predictions]):
            raise UserError(f"{file} has {len(lines)} lines and {predictions} has {len(files[predictions])}")
    return files[predictions], [list(several) for several in zip(*(files[file] for file in references), strict=True)]
