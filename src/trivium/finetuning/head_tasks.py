"""What tasks by a head have in common, once an example is one row: rows, measures, samples.

A task supplies how an example becomes a row with its target, and how the head's results become measures and words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from trivium.errors import UserError
from trivium.finetuning.head_rows import HeadExample, HeadRows, Wrapper, results_of, spread
from trivium.finetuning.labelled_rows import Labelled
from trivium.finetuning.prepared import Measure, PreparedTask, ShouldStop, SourceRows
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.source_rows import Split
from trivium.finetuning.task_settings import By
from trivium.models.build import Model
from trivium.models.config import Head, ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.objective import Objective

# Held-out rows that the report shows.
NUM_SAMPLES = 5
SAMPLE_CHARACTERS = 400
E = TypeVar("E")


@dataclass(frozen=True)
class Judged:
    """What a model made of some examples."""

    measures: dict[str, float]
    texts: list[str]
    """Each answer in words."""
    truths: list[str]
    """Each right answer in words."""


@dataclass(frozen=True)
class HeadTask(Generic[E]):
    """What is particular to one task whose examples are of type E."""

    objective: Objective
    head: Head
    labels: tuple[str, ...]
    make: Callable[[Sequence[E]], list[HeadExample]]
    """One row for each example. UserError, with the row's place, where its target cannot be told."""
    length: int
    """Most positions of a row."""
    asked: Callable[[E], str]
    """An example without its answer, in words."""
    judge: Callable[[Sequence[Tensor], Sequence[E]], Judged]
    """From the head's results, one for each of the examples."""
    facts: Mapping[str, Any]
    notes: Callable[[], Sequence[str]]
    """What is to be said once all rows are made."""


def by_text(by: By, config: ModelConfig, what: str) -> bool:
    """Whether the task is done by writing; `what` is what it is called. UserError for an encoder that is to write."""
    if by == "text" and (config.kind == "encoder" or config.head != "lm"):
        model = "an encoder" if config.kind == "encoder" else f"a model with a {config.head} head"
        raise UserError(f"task.by=text: {model} writes no text; {what} by such a model is by=head")
    return by == "text" or (by == "auto" and config.kind != "encoder" and config.head == "lm")


def refuse_for_heads(recipe: FinetuneRecipe) -> None:
    """UserError for what a task by a head cannot have."""
    if recipe.data.replay is not None:
        raise UserError(
            f"data.replay: general text is learned by writing it, and task={recipe.task.name} by a head writes "
            "nothing; leave replay out, or (decoder, encoder-decoder) use task.by=text"
        )


def rows_of_texts(
    wrapper: Wrapper, target: Callable[[Labelled], int | float]
) -> Callable[[Sequence[Labelled]], list[HeadExample]]:
    """A task's `make` for labelled texts; `target` is what the head is to say of one."""

    def make(examples: Sequence[Labelled]) -> list[HeadExample]:
        targets = [target(example) for example in examples]
        wrapped = wrapper.wrap_all([each.text for each in examples], [each.pair for each in examples])
        return [HeadExample(ids, types, each) for (ids, types), each in zip(wrapped, targets, strict=True)]

    return make


def prepared_head_task(
    recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, split: Split[E], task: HeadTask[E]
) -> PreparedTask:
    """The task of these examples."""

    def rows(examples: Sequence[E]) -> HeadRows:
        return HeadRows(task.make(examples), task.length, config, tokenizer.pad_id or 0)

    train = [SourceRows(source.name, rows(source.examples), source.weight) for source in split.train]
    held_out = {source.name: rows(source.examples) for source in split.held_out}
    examples = {source.name: source.examples for source in split.held_out}

    def judged(model: Model, most: int | None, should_stop: ShouldStop, progress: Progress) -> Judged:
        results: list[Tensor] = []
        chosen: list[E] = []
        for name, source in held_out.items():
            numbers = spread(len(source) if most is None else most, len(source))
            chosen += [examples[name][number] for number in numbers]
            results += results_of(model, source, numbers, recipe.data.rows_per_micro_batch, should_stop, progress)
        return task.judge(results, chosen)

    def measure(model: Model, should_stop: ShouldStop, progress: Progress) -> Mapping[str, float]:
        return judged(model, recipe.data.evaluation_rows, should_stop, progress).measures

    def samples(model: Model, progress: Progress) -> list[dict[str, Any]]:
        shown = [
            example
            for name, source in examples.items()
            for example in (source[number] for number in spread(NUM_SAMPLES, len(source)))
        ]
        if not shown:
            return []
        found = judged(model, NUM_SAMPLES, lambda: False, progress)
        return [
            {"prompt": shortened(task.asked(example)), "text": text, "truth": truth}
            for example, text, truth in zip(shown, found.texts, found.truths, strict=True)
        ]

    wanted: Measure | None = measure if held_out else None
    return PreparedTask(
        objective=task.objective,
        train=train,
        held_out=held_out,
        measure=wanted,
        samples=samples,
        head=task.head,
        labels=task.labels,
        notes=[*split.notes, *task.notes()],
        facts=dict(task.facts),
    )


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " ..."
