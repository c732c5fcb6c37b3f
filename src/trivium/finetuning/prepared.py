"""What a task gives to a run: rows, a loss, and measures. The run (`run.py`) knows nothing else of it.

Order: the task reads its files (`Prepare`), which says what head the model needs; the model is loaded; the loop trains;
at each evaluation the run takes the loss of the held-out rows of every source and asks `measure` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trivium.data.sources import Rows
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.models.build import Model
from trivium.models.config import Head, ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.objective import Objective

ShouldStop = Callable[[], bool]
# (model, whether to break off, progress) -> {name: value}; raises EvaluationInterrupted.
Measure = Callable[[Model, ShouldStop, Progress], Mapping[str, float]]
# (model, progress) -> [{"prompt", "text", "truth"}]
DrawSamples = Callable[[Model, Progress], list[dict[str, Any]]]


@dataclass(frozen=True)
class SourceRows:
    """The training rows of one source."""

    name: str
    rows: Rows
    weight: float | None
    """How often a row comes from here, relative to the other sources; None for all: by the number of rows."""


@dataclass(frozen=True)
class PreparedTask:
    """A task with its data."""

    objective: Objective
    train: Sequence[SourceRows]
    held_out: Mapping[str, Rows]
    """The held-out rows of each source; empty where nothing is held out."""
    measure: Measure | None
    """Scores of held-out rows beyond the loss (accuracy, F1, ROUGE of what is generated); None: there are none."""
    samples: DrawSamples
    """Some held-out rows as the model answers them."""
    head: Head = "lm"
    """What the model must have on its last hidden states."""
    labels: tuple[str, ...] = ()
    """The classes of that head."""
    notes: Sequence[str] = ()
    """What must be said before the run: rows that were left out and why, how many were cut."""
    facts: Mapping[str, Any] | None = None
    """Of the data, for the report: rows, learned tokens, ..."""
    chat_template: str | None = None
    """The template conversations were written with, to be saved with the model; None: the tokenizer's own."""


class Prepare(Protocol):
    """One task's entry in the table `TASKS` of `run.py`."""

    def __call__(
        self, recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress
    ) -> PreparedTask:
        """Read the rows. `config` is that of the model to start from. UserError for rows that cannot be read, and for
        models that cannot do the task."""
        ...
