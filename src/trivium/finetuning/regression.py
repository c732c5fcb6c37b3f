"""Texts, or pairs of texts, to a number, told by a head with a single output.

The loss is the squared error, summed over rows; the model is one of a single label, as the published families write
regressions. Measured on held-out rows: Pearson's and Spearman's correlation, and the root of the mean squared error in
the unit of the labels. Invariant its test checks: padding, the order of the rows and the size of micro-batches change
neither the loss nor the gradient, which are those of `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trivium.data.batch import Batch
from trivium.finetuning.head_rows import Wrapper, head_result
from trivium.finetuning.head_tasks import HeadTask, Judged, prepared_head_task, refuse_for_heads, rows_of_texts
from trivium.finetuning.labelled_rows import Labelled, number_of, read_labelled
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.task_settings import RegressSettings
from trivium.metrics.regression import pearson, rmse, spearman
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.objective import LossReport

# What the number is called in the model's config.
LABELS = ("score",)


@dataclass(frozen=True)
class RegressionObjective:
    """Squared error, summed over rows, in the square of the labels' unit."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss; `batch.targets` is (B,): the number of each row."""
        numbers_B = head_result(model, batch).view(-1)
        error_B = numbers_B - batch.targets.to(numbers_B.dtype)
        return LossReport(error_B.square().sum(), len(batch.targets))


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is a number; see `Prepare`."""
    assert isinstance(recipe.task, RegressSettings)
    refuse_for_heads(recipe)
    split = read_labelled(recipe.data)
    numbers = [number_of(example) for example in split.learned]
    tested = [number_of(example) for example in split.tested]
    mean = math.fsum(numbers) / len(numbers)
    facts = {"rows": len(numbers), "held_out_rows": len(tested), "mean": mean}
    if tested:
        facts["mean_baseline_rmse"] = rmse([mean] * len(tested), tested)
    single = config.head == "classification" and len(config.labels) == 1
    wrapper = Wrapper(tokenizer, config, recipe.data.sequence_length)
    task = HeadTask(
        objective=RegressionObjective(),
        head="classification",
        labels=config.labels if single else LABELS,
        make=rows_of_texts(wrapper, number_of),
        length=wrapper.length,
        asked=lambda example: example.asked,
        judge=_judged,
        facts=facts,
        notes=lambda: wrapper.notes,
    )
    return prepared_head_task(recipe, tokenizer, config, split, task)


def _judged(results: Sequence[Tensor], examples: Sequence[Labelled]) -> Judged:
    found = [float(result.view(-1)[0]) for result in results]
    right = [number_of(example) for example in examples]
    measures = {
        "pearson": pearson(found, right),
        "spearman": spearman(found, right),
        "rmse": rmse(found, right),
    }
    return Judged(measures, [f"{value:.4g}" for value in found], [f"{value:.4g}" for value in right])
