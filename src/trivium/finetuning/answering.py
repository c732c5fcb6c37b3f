"""Answers to questions, as the spans of a text in which they stand (SQuAD; Rajpurkar et al., 2016, 2018).

By a head: question and text are a pair, cut into windows (`generation/answering.py`). Two softmaxes over the positions
of a window tell where the answer begins and where it ends; the loss is the sum of both cross-entropies (Devlin et al.,
2019, section 4.2), over all windows. A window without the whole answer has both at position 0. Padding has no part in
the softmaxes. Held-out rows are answered as they would be served, and scored by exact match and token F1, each the best
over the right answers. By text the first right answer is written after text and question, and scored likewise.

Invariant its test checks: padding, the order of the rows and the size of micro-batches change neither the loss nor the
gradient, which are those of `transformers`.

Shapes: B windows, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

from trivium.data.batch import Batch
from trivium.data.squad import AnswerText, Question, questions_of
from trivium.errors import UserError
from trivium.finetuning.head_rows import HeadExample, HeadRows, head_result, spread
from trivium.finetuning.head_tasks import NUM_SAMPLES, by_text, refuse_for_heads, shortened
from trivium.finetuning.prepared import PreparedTask, ShouldStop, SourceRows
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.source_rows import Split, read_split
from trivium.finetuning.task_settings import AnswerSettings
from trivium.finetuning.told_by_text import ToldTask, prepared_told_task
from trivium.generation.answering import Answer, Window, Windows, answers
from trivium.metrics.answers import exact_match, token_f1
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import EvaluationInterrupted
from trivium.training.objective import LossReport

# Questions answered together; between two such groups a run can be ended.
QUESTIONS_AT_ONCE = 32
Target = tuple[int, int]
NOWHERE: Target = (0, 0)
# What is written of a text that has no answer.
NOT_SAID = "not said"
# Stands for an answer that is none.
WRONG = "\ufffd"


@dataclass(frozen=True)
class SpanObjective:
    """Cross-entropy of an answer's first and last position, summed over both and all windows, in nats; "correct" among
    the scalars counts the ends that are right."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss; `batch.targets` is (B, 2): the first and the last position."""
        logits_BT2 = head_result(model, batch)
        if batch.segments is not None:
            logits_BT2 = logits_BT2.masked_fill(batch.segments[:, :, None] == 0, -math.inf)
        loss = F.cross_entropy(logits_BT2, batch.targets, reduction="sum")
        correct = (logits_BT2.argmax(1) == batch.targets).sum()
        return LossReport(loss, batch.targets.numel(), {"correct": correct})


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is to answer from a text; see `Prepare`. Questions about one text are on one side
    of what is held out."""
    settings = recipe.task
    assert isinstance(settings, AnswerSettings)
    split = read_split(recipe.data, questions_of, lambda question: question.context)
    if by_text(settings.by, config, "answering"):
        return prepared_told_task(recipe, tokenizer, config, split, _told(split), progress)
    refuse_for_heads(recipe)
    if config.kind == "decoder":
        raise UserError(
            "task=answer by a head: where an answer begins, a decoder has not read how it goes on; use task.by=text"
        )
    windows = _QuestionWindows(recipe, tokenizer, config)
    train = [
        SourceRows(source.name, windows.rows(source.name, source.examples, progress), source.weight)
        for source in split.train
    ]
    tested = {source.name: source.examples for source in split.held_out}
    held_out = {name: windows.rows(name, some, progress, every=True) for name, some in tested.items()}
    scored = _Scored(recipe, settings, tokenizer, tested, any(not each.answers for each in split.learned))
    return PreparedTask(
        objective=SpanObjective(),
        train=train,
        held_out=held_out,
        measure=scored.measure if tested else None,
        samples=scored.samples,
        head="span",
        notes=[*split.notes, *windows.notes],
        facts={**_facts(split), "windows": sum(len(source.rows) for source in train)},
    )


def _told(split: Split[Question]) -> ToldTask[Question]:
    """Answers in words."""
    some_without = any(not each.answers for each in split.learned)
    how = "Answer with words of the text" + (f", or with: {NOT_SAID}" if some_without else "")
    return ToldTask(
        asked=lambda each: f"{how}.\n\n{each.context}\n\n{each.question}",
        answer=lambda each: each.answers[0].text if each.answers else NOT_SAID,
        where=lambda each: each.where,
        score=lambda said, asked: answer_measures([*map(as_answer, said)], asked),
        facts=_facts(split),
    )


def as_answer(written: str) -> str:
    """What is written as an answer: empty where it is that the text does not say; to write nothing is wrong."""
    said = written.strip()
    return "" if said.lower() == NOT_SAID else said or WRONG


def _facts(split: Split[Question]) -> dict[str, Any]:
    return {
        "questions": len(split.learned),
        "without_answer": sum(not each.answers for each in split.learned),
        "held_out_questions": len(split.tested),
    }


class _QuestionWindows:
    """From questions to rows, and what could not be made one."""

    def __init__(self, recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig) -> None:
        assert isinstance(recipe.task, AnswerSettings)
        self._windows = Windows(tokenizer, config, recipe.data.sequence_length, recipe.task.stride)
        self._config, self._pad_id = config, tokenizer.pad_id or 0
        self._lost = 0

    def rows(self, name: str, questions: Sequence[Question], progress: Progress, *, every: bool = False) -> HeadRows:
        """The windows of all questions; without `every`, questions whose answer no window holds whole are left out.

        UserError where that leaves none.
        """
        examples: list[HeadExample] = []
        progress.start(f"cutting the texts of {name}", total=len(questions), unit="questions")
        for question in questions:
            placed, windows = self._windows.cut(question.question, question.context)
            tokens = answer_tokens(placed.ranges, question.answers[0]) if question.answers else None
            targets = [target_in(window, tokens) for window in windows]
            progress.advance()
            if question.answers and all(target == NOWHERE for target in targets) and not every:
                self._lost += 1
                continue
            for window, target in zip(windows, targets, strict=True):
                examples.append(self._example(window, target))
        progress.finish()
        if not examples:
            raise UserError(f"{name}: no answer fits into a row; raise data.sequence_length")
        return HeadRows(examples, self._windows.length, self._config, self._pad_id)

    def _example(self, window: Window, target: Target) -> HeadExample:
        ids, types = window.wrapped.ids, window.wrapped.types
        told = self._config.segment_types > 0 and any(types)
        return HeadExample(np.array(ids, np.int32), np.array(types, np.int8) if told else None, target)

    @property
    def notes(self) -> list[str]:
        """What was cut or left out."""
        length, cut = self._windows.length, self._windows.num_cut_questions
        lost = f"{self._lost} questions are left out: no window of {length} tokens holds their answer whole"
        long = f"{cut} questions took more than half of {length} tokens and are cut"
        return [note for note, count in ((lost, self._lost), (long, cut)) if count]


def answer_tokens(ranges: Sequence[tuple[int, int]], answer: AnswerText) -> tuple[int, int] | None:
    """(first, last) token of an answer, by the characters of all tokens; None where it has none."""
    stop = answer.start + len(answer.text)
    inside = [
        number for number, (begin, end) in enumerate(ranges) if begin < end and end > answer.start and begin < stop
    ]
    return (inside[0], inside[-1]) if inside else None


def target_in(window: Window, tokens: tuple[int, int] | None) -> Target:
    """The positions of an answer in a window; `NOWHERE` where the window does not hold it whole."""
    if tokens is None or tokens[0] < window.first or tokens[1] >= window.first + window.count:
        return NOWHERE
    moved = window.begin - window.first
    return tokens[0] + moved, tokens[1] + moved


@dataclass(frozen=True)
class _Scored:
    """Held-out questions as the model answers them."""

    recipe: FinetuneRecipe
    settings: AnswerSettings
    tokenizer: Tokenizer
    questions: Mapping[str, Sequence[Question]]
    may_be_none: bool = field(default=False)
    """Whether questions without an answer are among those learned."""

    def measure(self, model: Model, should_stop: ShouldStop, progress: Progress) -> Mapping[str, float]:
        """Exact match and F1, 0 to 1; with questions without an answer, also of both kinds alone."""
        most = self.recipe.data.evaluation_rows
        asked = self._chosen(most)
        found = [each[0].text if each else "" for each in self._answered(model, asked, should_stop, progress)]
        return answer_measures(found, asked)

    def samples(self, model: Model, progress: Progress) -> list[dict[str, Any]]:
        """Some of them, in words."""
        asked = self._chosen(NUM_SAMPLES)
        found = self._answered(model, asked, lambda: False, progress)
        return [
            {
                "prompt": f"{each.question}\n{shortened(each.context)}",
                "text": (best[0].text if best else "") or NOT_SAID,
                "truth": each.answers[0].text if each.answers else NOT_SAID,
            }
            for each, best in zip(asked, found, strict=True)
        ]

    def _chosen(self, most: int | None) -> list[Question]:
        """At most so many of each source, evenly spread."""
        return [
            some[number]
            for some in self.questions.values()
            for number in spread(len(some) if most is None else most, len(some))
        ]

    def _answered(
        self, model: Model, asked: Sequence[Question], should_stop: ShouldStop, progress: Progress
    ) -> list[list[Answer]]:
        """The best answers to each; raises EvaluationInterrupted once `should_stop()`."""
        found: list[list[Answer]] = []
        for first in range(0, len(asked), QUESTIONS_AT_ONCE):
            if should_stop():
                raise EvaluationInterrupted
            found += answers(
                model,
                self.tokenizer,
                [(each.question, each.context) for each in asked[first : first + QUESTIONS_AT_ONCE]],
                length=self.recipe.data.sequence_length,
                stride=self.settings.stride,
                max_answer_tokens=self.settings.max_answer_tokens,
                may_be_none=self.may_be_none,
                tokens_per_batch=self.recipe.data.rows_per_micro_batch * self.recipe.data.sequence_length,
                progress=progress,
            )
        return found


def answer_measures(found: Sequence[str], asked: Sequence[Question]) -> dict[str, float]:
    """{"exact_match", "f1"}, the mean over questions; where some have an answer and some have none, also
    {"f1_with_answer", "accuracy_without_answer"}. Empty for no question."""
    if not asked:
        return {}
    right = [[answer.text for answer in each.answers] or [""] for each in asked]
    values = {"exact_match": exact_match(found, right), "f1": token_f1(found, right)}
    has = [number for number, each in enumerate(asked) if each.answers]
    without = [number for number, each in enumerate(asked) if not each.answers]
    if has and without:
        values["f1_with_answer"] = token_f1([found[n] for n in has], [right[n] for n in has])
        values["accuracy_without_answer"] = sum(not found[n] for n in without) / len(without)
    return values
