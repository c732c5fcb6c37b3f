"""Instruction tuning: conversations of all kinds, whose answers are learned (Ouyang et al., 2022, its first step).

The loss is the cross-entropy of the answers' tokens and of what ends them, summed, and divided by their number over
the whole step; what is asked is read and not learned (`task.learn` says otherwise). Invariants its tests check: the
loss and gradient of real rows are those of `transformers` with the same tokens masked; training ids are serving ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trivium.data.conversations import Conversation, Message
from trivium.data.dataset_info import source_rows
from trivium.data.row import Row
from trivium.data.rows import Labelled, Pair, Preference, Text, Tokenized, parse_rows
from trivium.errors import UserError
from trivium.finetuning.by_text import TextTask, prepared_text_task, refuse_models_that_do_not_write
from trivium.finetuning.pieces import Sourced
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.rendering import Renderer
from trivium.finetuning.source_rows import read_split
from trivium.finetuning.task_settings import InstructSettings
from trivium.finetuning.written import SCORES
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is to answer; see `Prepare`."""
    settings = recipe.task
    assert isinstance(settings, InstructSettings)
    refuse_models_that_do_not_write(recipe, config)
    if settings.learn == "all" and config.kind != "decoder":
        raise UserError("task.learn=all is for decoders: an encoder-decoder writes its answers only; leave it out")
    template = None if settings.chat_template is None else read_template(settings.chat_template)
    if template is not None:
        tokenizer = tokenizer.with_chat_template(template)
    reader = ConversationReader()
    split = read_split(recipe.data, reader.read, asked, source_rows)
    renderer = Renderer(tokenizer, config.kind, settings.learn, settings.system)
    task = TextTask(renderer, [SCORES[name] for name in settings.scores], template)
    return prepared_text_task(recipe, config, split, task, progress, notes=reader.notes)


class ConversationReader:
    """From rows to what is learned of them."""

    def __init__(self) -> None:
        self.num_disliked = 0

    def read(self, row: Row) -> Iterator[Sourced]:
        """What a row holds. UserError for rows of another task."""
        for parsed in parse_rows(row):
            if isinstance(parsed, Conversation) and parsed.liked is False:
                self.num_disliked += 1
            elif isinstance(parsed, Conversation | Text | Tokenized):
                yield Sourced(parsed, row.where)
            elif isinstance(parsed, Pair):
                yield Sourced(conversation_of(parsed.source, parsed.target), row.where)
            else:
                raise UserError(f"{row.where}: {_other_task(parsed)}")

    @property
    def notes(self) -> list[str]:
        """What was passed over."""
        return (
            [f"{self.num_disliked} answers are marked as bad (label: false) and left out"] if self.num_disliked else []
        )


def conversation_of(asked: str, answer: str) -> Conversation:
    """A plain text and the answer to it."""
    return Conversation((Message("user", asked), Message("assistant", answer)), is_plain=True)


def asked(sourced: Sourced) -> str:
    """The text by which a row is held out: what people say in it; a text or ids as a whole."""
    row = sourced.row
    if isinstance(row, Conversation):
        return "\n".join(each.content for each in row.messages if each.role not in ("assistant", "system")) or row.key
    return row.text if isinstance(row, Text) else " ".join(map(str, row.input_ids))


def read_template(path: str) -> str:
    """The text of a Jinja file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.chat_template: {path} cannot be read as text ({error}); name a Jinja file") from None


def _other_task(parsed: Preference | Labelled) -> str:
    if isinstance(parsed, Preference):
        return (
            "is a pair of a chosen and a rejected answer; to learn the chosen one as an answer, say so: "
            "columns: {response: chosen}"
        )
    return "is a text with a label, which is no answer: use task=classify"
