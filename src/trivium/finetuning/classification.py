"""Texts, or pairs of texts, to classes, told by a head or in words.

By a head the loss is the cross-entropy of each row's class, summed over rows; only the head's weights are new to the
model. By text the name of the class is written after the text; what is written and is no class counts as wrong.
Measured on held-out rows: accuracy, the mean F1 of the classes, Matthews' correlation and, of two classes, the F1 of
the second (GLUE; Wang et al., 2019). Invariant its test checks: padding, the order of the rows and the size of
micro-batches change neither the loss nor the gradient, which are those of `transformers`.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from trivium.data.batch import Batch
from trivium.errors import UserError
from trivium.finetuning.head_rows import Wrapper, head_result
from trivium.finetuning.head_tasks import (
    HeadTask,
    Judged,
    by_text,
    prepared_head_task,
    refuse_for_heads,
    rows_of_texts,
)
from trivium.finetuning.labelled_rows import ClassNumbers, Labelled, classes_of, read_labelled
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.source_rows import Split
from trivium.finetuning.task_settings import ClassifySettings
from trivium.finetuning.told_by_text import ToldTask, prepared_told_task
from trivium.metrics.classification import accuracy, class_scores, f1_macro, majority_share, matthews_correlation
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.objective import LossReport

# What was written and names no class.
NO_CLASS = -1


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the class, summed over rows, in nats; "correct" among the scalars counts the right ones."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss; `batch.targets` is (B,): the class of each row."""
        logits_BC = head_result(model, batch)
        correct = (logits_BC.argmax(-1) == batch.targets).sum()
        loss = F.cross_entropy(logits_BC, batch.targets, reduction="sum")
        return LossReport(loss, len(batch.targets), {"correct": correct})


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is to classify; see `Prepare`."""
    settings = recipe.task
    assert isinstance(settings, ClassifySettings)
    split = read_labelled(recipe.data)
    labels = class_names(split, settings, config)
    numbers = ClassNumbers(labels)
    if by_text(settings.by, config, "classification"):
        told = _told(settings, numbers, class_facts(split, numbers))
        return prepared_told_task(recipe, tokenizer, config, split, told, progress)
    refuse_for_heads(recipe)
    wrapper = Wrapper(tokenizer, config, recipe.data.sequence_length)
    task = HeadTask(
        objective=ClassificationObjective(),
        head="classification",
        labels=labels,
        make=rows_of_texts(wrapper, numbers.of),
        length=wrapper.length,
        asked=lambda example: example.asked,
        judge=lambda results, examples: _judged(results, examples, numbers),
        facts=class_facts(split, numbers),
        notes=lambda: wrapper.notes,
    )
    return prepared_head_task(recipe, tokenizer, config, split, task)


def class_names(split: Split[Labelled], settings: ClassifySettings, config: ModelConfig) -> tuple[str, ...]:
    """The recipe's classes, else those of a model that tells classes already and knows all of the rows', else those of
    the training rows. UserError for fewer than two, or one twice."""
    if settings.labels:
        labels = settings.labels
    else:
        labels = classes_of(split.learned if not split.tested else [*split.learned, *_of_training_sources(split)])
        if config.head == "classification" and set(labels) <= set(config.labels):
            labels = config.labels
    if len(labels) < 2 or len(set(labels)) < len(labels):
        listed = ", ".join(labels) or "none"
        raise UserError(f"classes are {listed}: there must be two or more, each once (task.labels names them)")
    return labels


def class_facts(split: Split[Labelled], numbers: ClassNumbers) -> dict[str, object]:
    """Rows, how many of each class are learned, and the accuracy of always answering with the commonest."""
    learned = Counter(numbers.labels[numbers.of(example)] for example in split.learned)
    tested = [numbers.of(example) for example in split.tested]
    return {
        "rows": len(split.learned),
        "held_out_rows": len(tested),
        "classes": {name: learned[name] for name in numbers.labels},
        **({"majority_baseline": majority_share(tested)} if tested else {}),
    }


def class_measures(predictions: Sequence[int], references: Sequence[int], num_classes: int) -> dict[str, float]:
    """Accuracy, macro F1, Matthews' correlation, and of two classes the F1 of the second."""
    values = {
        "accuracy": accuracy(predictions, references),
        "f1_macro": f1_macro(predictions, references),
        "matthews_correlation": matthews_correlation(predictions, references),
    }
    if num_classes == 2:
        scores = class_scores(predictions, references)
        values["f1"] = scores[1].f1 if 1 in scores else 0.0
    return values


def _judged(results: Sequence[Tensor], examples: Sequence[Labelled], numbers: ClassNumbers) -> Judged:
    chosen = [int(result_C.argmax()) for result_C in results]
    chances = [float(result_C.softmax(-1).max()) for result_C in results]
    right = [numbers.of(example) for example in examples]
    return Judged(
        class_measures(chosen, right, len(numbers.labels)) if right else {},
        [f"{numbers.labels[c]} ({100 * p:.0f} %)" for c, p in zip(chosen, chances, strict=True)],
        [numbers.labels[number] for number in right],
    )


def _told(settings: ClassifySettings, numbers: ClassNumbers, facts: dict[str, object]) -> ToldTask[Labelled]:
    """Classes in words."""
    stated = settings.instruction or f"Which class is the text of: {', '.join(numbers.labels)}?"
    return ToldTask(
        asked=lambda example: f"{stated}\n\n{example.asked}",
        answer=lambda example: numbers.labels[numbers.of(example)],
        where=lambda example: example.where,
        score=lambda said, examples: written_measures(said, examples, numbers),
        facts=facts,
    )


def written_measures(said: Sequence[str], examples: Sequence[Labelled], numbers: ClassNumbers) -> dict[str, float]:
    """Of classes written as text (case and white space around them do not matter): `class_measures`, in which
    what is no class is wrong, and "told", the share that is one."""
    known = {name.strip().lower(): number for number, name in enumerate(numbers.labels)}
    chosen = [known.get(text.strip().lower(), NO_CLASS) for text in said]
    right = [numbers.of(example) for example in examples]
    scores = class_scores(chosen, right)
    scores.pop(NO_CLASS, None)
    values = class_measures(chosen, right, len(numbers.labels))
    values["f1_macro"] = sum(score.f1 for score in scores.values()) / len(scores)
    return {**values, "told": sum(number != NO_CLASS for number in chosen) / len(chosen)}


def _of_training_sources(split: Split[Labelled]) -> Sequence[Labelled]:
    """Held-out rows that come from a training source: their classes are known, however the hash fell."""
    names = {source.name for source in split.train} if not split.validated else set()
    return [example for source in split.held_out if source.name in names for example in source.examples]
