"""Tasks prepared from a recipe for a small saved model, and trained for a moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetuning.small_runs import base_model
from trivium.checkpoints.bundle import load
from trivium.config import build_settings
from trivium.data.sources import PackedSource
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.run import TASKS
from trivium.models.build import Model
from trivium.models.config import Kind
from trivium.progress import SILENT
from trivium.runtime import Runtime
from trivium.training.loop import train


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


class Small:
    """A recipe for a small model, and what it prepares."""

    def __init__(self, folder: Path, task: Any, train_on: Any, kind: Kind = "encoder", **data: Any) -> None:
        model = base_model(folder, kind, dropout=0.0)
        self.recipe = build_settings(
            FinetuneRecipe,
            {
                "run": str(folder / "run"),
                "start_from": str(model),
                "task": task,
                "data": {"sequence_length": 64, "rows_per_step": 8, "train": str(train_on), **data},
                "training": {"steps": 60, "learning_rate": 3e-3, "weight_decay": 0.0},
            },
            "test",
        )
        bundle = load(model)
        self.tokenizer, self.config = bundle.tokenizer, bundle.config

    def prepare(self) -> PreparedTask:
        """The task."""
        return TASKS[self.recipe.task.name](self.recipe, self.tokenizer, self.config, SILENT)

    def trained(self, task: PreparedTask, steps: int = 60) -> Model:
        """A model after so many steps."""
        head = {} if task.head == "lm" else {"head": task.head, "labels": task.labels}
        model = load(self.recipe.start_from, **head).model
        source = PackedSource(
            [(each.rows, each.weight) for each in task.train], rows_per_step=8, rows_per_micro_batch=8, seed=0
        )
        settings = self.recipe.training.model_copy(update={"steps": steps})
        train(model, task.objective, source, settings, Runtime())
        return model

    def measured(self, task: PreparedTask, model: Model) -> dict[str, float]:
        """Its measures."""
        assert task.measure is not None
        return dict(task.measure(model, lambda: False, SILENT))
