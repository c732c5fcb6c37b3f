"""A text turned into another: summaries, translations (Sutskever et al., 2014).

An encoder-decoder reads the source, with `task.instruction` before it, and writes the target; a decoder reads it as a
prompt and answers with the target. The loss is the cross-entropy of the target's tokens and its end, with
`task.label_smoothing` (Szegedy et al., 2016, section 7). Sources without a text of their own, and targets without one,
are refused as in pretraining on pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.conversations import Conversation
from trivium.data.dataset_info import source_rows
from trivium.data.pairs import read_pairs
from trivium.data.row import Row
from trivium.data.rows import Pair, parse_rows
from trivium.errors import UserError
from trivium.finetuning.by_text import TextTask, prepared_text_task, refuse_models_that_do_not_write
from trivium.finetuning.instruct import asked, conversation_of
from trivium.finetuning.pieces import Sourced
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.rendering import Renderer
from trivium.finetuning.source_rows import read_split
from trivium.finetuning.task_settings import Seq2SeqSettings
from trivium.finetuning.written import SCORES
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is to turn texts into others; see `Prepare`."""
    settings = recipe.task
    assert isinstance(settings, Seq2SeqSettings)
    refuse_models_that_do_not_write(recipe, config)

    def read(path: str) -> Iterator[Row]:
        if settings.languages is None:
            return source_rows(path)
        pairs = enumerate(read_pairs(path, settings.languages), 1)
        return (Row({"source": pair.source, "target": pair.target}, path, number) for number, pair in pairs)

    def parse(row: Row) -> Iterator[Sourced]:
        for pair in pairs_of(row):
            yield Sourced(conversation_of(settings.instruction + pair.source, pair.target), row.where)

    split = read_split(recipe.data, parse, asked, read)
    task = TextTask(
        Renderer(tokenizer, config.kind),
        [SCORES[name] for name in settings.scores],
        label_smoothing=settings.label_smoothing,
        num_beams=settings.num_beams,
    )
    return prepared_text_task(recipe, config, split, task, progress)


def pairs_of(row: Row) -> Iterator[Pair]:
    """The pairs of a row: one of source and target, or a prompt and its response. UserError for any other."""
    for parsed in parse_rows(row):
        if isinstance(parsed, Conversation) and [each.role for each in parsed.messages] == ["user", "assistant"]:
            parsed = Pair(parsed.messages[0].content, parsed.messages[1].content)
        if not isinstance(parsed, Pair):
            raise UserError(
                f"{row.where}: is no pair of a source and a target (its keys: {', '.join(map(repr, row.values))}); "
                "give rows of source and target, or name those keys: columns: {source: NAME, target: NAME}; for "
                "parallel texts set task.languages"
            )
        if not parsed.source.strip() or not parsed.target.strip():
            side = "target" if parsed.source.strip() else "source"
            raise UserError(f"{row.where}: the {side} is empty; leave the row out, or fill it in")
        yield parsed
