"""What tasks by text have in common, once a row is a conversation: rows, loss, what is generated, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data.conversations import Conversation
from trivium.data.order import key_of
from trivium.errors import UserError
from trivium.finetuning.head_rows import spread
from trivium.finetuning.head_tasks import NUM_SAMPLES
from trivium.finetuning.mixing import Sized, mixed, replay_rows
from trivium.finetuning.pieces import InstructRows, Left, Sourced, rendered_pieces
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.rendering import Renderer, chatml_for
from trivium.finetuning.source_rows import SourceExamples, Split
from trivium.finetuning.written import Score, Written, questions_of, stated_questions
from trivium.generation.chat import SHARE_FOR_ANSWER
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.training.token_objective import TokenObjective


@dataclass(frozen=True)
class TextTask:
    """What is particular to one task."""

    renderer: Renderer
    scores: Sequence[Score]
    chat_template: str | None = None
    """The recipe's own."""
    label_smoothing: float = 0.0
    num_beams: int = 1


def refuse_models_that_do_not_write(recipe: FinetuneRecipe, config: ModelConfig) -> None:
    """UserError for encoders, and for models whose head is for something else."""
    name = recipe.task.name
    if config.kind == "encoder":
        raise UserError(
            f"task={name}: {recipe.start_from} is an encoder, which reads a text whole and writes none; use a decoder "
            "or an encoder-decoder, or a task that an encoder can do (classify, regress, tag, answer)"
        )
    if config.head != "lm":
        raise UserError(f"task={name}: {recipe.start_from} has a {config.head} head and writes no text")


def prepared_text_task(
    recipe: FinetuneRecipe,
    config: ModelConfig,
    split: Split[Sourced],
    task: TextTask,
    progress: Progress,
    *,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> PreparedTask:
    """The task of these rows; `notes` and `facts` are said beside its own. UserError where no row is left to learn."""
    data, renderer = recipe.data, task.renderer
    lefts: list[Left] = []
    length = min(data.sequence_length, config.max_positions)

    def rows_of(source: SourceExamples[Sourced], seed: int) -> InstructRows | None:
        lefts.append(Left())
        pieces = rendered_pieces(
            source.examples,
            renderer,
            length,
            lefts[-1],
            start_id=config.decoder_start_id,
            name=source.name,
            progress=progress,
        )
        if pieces is None:
            return None
        pad_id = renderer.tokenizer.pad_id or 0
        return InstructRows(pieces, length, seed, pad_id, packing=data.packing)

    train: list[Sized] = []
    for number, source in enumerate(split.train):
        rows = rows_of(source, key_of(recipe.seed, "rows", number))
        if rows is None:
            raise UserError(f"{source.name}: nothing is learned of any row ({lefts[-1].notes(length)[0]})")
        train.append(Sized(source.name, rows, len(rows.pieces), rows.pieces.num_tokens, source.weight))
    made = {source.name: rows_of(source, key_of("held-out rows")) for source in split.held_out}
    held_out = {name: rows for name, rows in made.items() if rows is not None}
    left = Left([row for each in lefts for row in each.dropped], sum(each.num_cut for each in lefts))
    general = replay_rows(recipe, renderer.tokenizer, config, length, progress)
    written = _written(recipe, config, split, task, length)
    return PreparedTask(
        objective=TokenObjective(label_smoothing=task.label_smoothing),
        train=mixed(train, data, general),
        held_out=held_out,
        measure=written.measure if written.measured and written.scores else None,
        samples=written.samples,
        notes=[*split.notes, *notes, *left.notes(length)],
        facts={**_facts(train, held_out, left), **(facts or {})},
        chat_template=task.chat_template or _installed(split, renderer),
    )


def _facts(train: Sequence[Sized], held_out: Mapping[str, InstructRows], left: Left) -> dict[str, int]:
    """What the report says of the rows."""
    pieces = [source.rows.pieces for source in train if isinstance(source.rows, InstructRows)]
    return {
        "examples": sum(map(len, pieces)),
        "held_out_examples": sum(len(rows.pieces) for rows in held_out.values()),
        "tokens": sum(each.num_tokens for each in pieces),
        "learned_tokens": sum(each.num_learned for each in pieces),
        "rows": sum(len(source.rows) for source in train),
        "cut": left.num_cut,
        "left_out": len(left.dropped),
    }


def _installed(split: Split[Sourced], renderer: Renderer) -> str | None:
    """ChatML, where conversations are written and the tokenizer has no template."""
    if renderer.kind != "decoder" or renderer.tokenizer.chat_template is not None:
        return None
    written = any(isinstance(each.row, Conversation) and not renderer.is_plain(each.row) for each in split.learned)
    return chatml_for(renderer.tokenizer) if written else None


def _written(
    recipe: FinetuneRecipe, config: ModelConfig, split: Split[Sourced], task: TextTask, length: int
) -> Written:
    """Which held-out rows are answered; those shown are some of each source, and the recipe's own prompts."""
    settings, rows = recipe.task, split.tested
    shown = [
        question
        for source in split.held_out
        for question in questions_of(source.examples, task.renderer, spread(NUM_SAMPLES, len(source.examples)))
    ]
    is_plain = all(task.renderer.is_plain(each.row) for each in split.learned)
    shown += stated_questions(recipe.sample_prompts, task.renderer, is_plain=is_plain)
    most = max(settings.max_new_tokens, recipe.sample_tokens)
    room = config.max_positions
    if config.kind == "decoder":
        room -= min(most, room // SHARE_FOR_ANSWER)
    return Written(
        task.renderer,
        task.scores,
        questions_of(rows, task.renderer, spread(settings.generated_rows, len(rows))),
        shown,
        settings.max_new_tokens,
        recipe.sample_tokens,
        min(length, room),
        task.num_beams,
    )
