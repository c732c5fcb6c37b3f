"""Classes, entities and answers told in words: examples of these tasks as conversations of a prompt and a response.

What is asked ends in a line break, so that the response begins a line also where there is no chat template. A task
supplies both texts of an example, and how what the model writes is scored; the rest is that of every task by text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trivium.finetuning.by_text import TextTask, prepared_text_task
from trivium.finetuning.head_rows import spread
from trivium.finetuning.instruct import conversation_of
from trivium.finetuning.pieces import Sourced
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.rendering import Renderer
from trivium.finetuning.source_rows import SourceExamples, Split
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer

E = TypeVar("E")


@dataclass(frozen=True)
class ToldTask(Generic[E]):
    """What is particular to one task whose examples are of type E."""

    asked: Callable[[E], str]
    """The prompt."""
    answer: Callable[[E], str]
    """The right response."""
    where: Callable[[E], str]
    """File and row."""
    score: Callable[[Sequence[str], Sequence[E]], Mapping[str, float]]
    """From responses, one for each of the examples, to measures."""
    facts: Mapping[str, Any]


def prepared_told_task(
    recipe: FinetuneRecipe,
    tokenizer: Tokenizer,
    config: ModelConfig,
    split: Split[E],
    task: ToldTask[E],
    progress: Progress,
) -> PreparedTask:
    """The task of these examples."""

    def side(sources: Sequence[SourceExamples[E]]) -> list[SourceExamples[Sourced]]:
        return [SourceExamples(each.name, [*map(sourced, each.examples)], each.weight) for each in sources]

    def sourced(example: E) -> Sourced:
        return Sourced(conversation_of(f"{task.asked(example)}\n", task.answer(example)), task.where(example))

    tested = split.tested
    scored = [tested[number] for number in spread(recipe.task.generated_rows, len(tested))]
    return prepared_text_task(
        recipe,
        config,
        Split(side(split.train), side(split.held_out), split.validated),
        TextTask(Renderer(tokenizer, config.kind), [lambda said, _: task.score(said, scored)]),
        progress,
        facts=task.facts,
    )
