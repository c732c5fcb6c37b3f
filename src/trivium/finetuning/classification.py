"""Texts to classes: the rows, the loss, and one run that turns a pretrained model into a classifier.

The model gets a head for a whole text (`models/heads.py`), of which alone the weights are fresh; everything is trained
by the one loop. Rows are single texts, padded to the longest of their batch. Invariant its test checks: padding and the
size of micro-batches change neither the loss nor the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trivium.checkpoints.config_files import read_config
from trivium.checkpoints.directory import load_weights, save_model_directory
from trivium.checkpoints.store import CheckpointStore
from trivium.data.batch import Batch
from trivium.data.sources import EvaluationRows, PackedSource
from trivium.errors import UserError
from trivium.models.base import LanguageModel
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.models.encoder_decoder import shifted_right
from trivium.planner.history import PlannedRun, record_run
from trivium.planner.memory import FRAMEWORK_BYTES, estimate
from trivium.planner.statement import state_plan
from trivium.progress import SILENT, Progress
from trivium.quantization.quantize import refuse_quantized
from trivium.runtime import Runtime, give_back_freed_memory
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import evaluate_loss
from trivium.training.forward import target_hidden
from trivium.training.loop import TrainResult, train
from trivium.training.memory import current_bytes
from trivium.training.objective import LossReport
from trivium.training.settings import TrainingSettings


@dataclass(frozen=True)
class LabelledText:
    """One text and the number of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the class, summed over texts, in nats; "correct" among the scalars counts the right ones."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss; `batch.targets` is (B,): the class of each row."""
        assert isinstance(model, LanguageModel)
        logits_BC = model.result(target_hidden(model, batch), batch.segments).float()
        correct = (logits_BC.argmax(-1) == batch.targets).sum()
        return LossReport(
            F.cross_entropy(logits_BC, batch.targets, reduction="sum"), len(batch.targets), {"correct": correct}
        )


class LabelledRows:
    """One labelled text a row, with the marks of the model's inputs; texts that are too long are cut at their ends.

    An encoder-decoder reads each text as its source, and once more, shifted, as its target.
    """

    def __init__(
        self, texts: Sequence[LabelledText], tokenizer: Tokenizer, config: ModelConfig, sequence_length: int
    ) -> None:
        """UserError when there are none, one has a class that the model's head has not, or there is no room."""
        if not texts:
            raise UserError("there are no labelled texts")
        for number, each in enumerate(texts, 1):
            if not 0 <= each.label < len(config.labels):
                raise UserError(f"labelled text {number} is of class {each.label}: there are {len(config.labels)}")
        self.sequence_length, self._config = sequence_length, config
        marks = len(tokenizer.wrap([])[0])
        if sequence_length <= marks:
            raise UserError(f"a row of {sequence_length} tokens has no room for a text: its marks alone are {marks}")
        encoded = tokenizer.encode_batch([each.text for each in texts])
        self._ids = [tokenizer.wrap(ids[: sequence_length - marks])[0] for ids in encoded]
        self._labels = [each.label for each in texts]
        self._pad_id = tokenizer.pad_id or 0

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._ids)

    def row(self, number: int, epoch: int = 0) -> tuple[list[int], int]:
        """(ids, class) of one text."""
        return self._ids[number], self._labels[number]

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Rows as one batch, padded to the longest."""
        return self._batch(rows, max(len(ids) for ids, _ in rows))

    def worst_case(self, rows: Sequence[Any]) -> Batch:
        """The same, padded to the longest of all texts."""
        return self._batch(rows, max(map(len, self._ids)))

    def _batch(self, rows: Sequence[Any], width: int) -> Batch:
        ids = torch.full((len(rows), width), self._pad_id)
        segments = torch.zeros((len(rows), width), dtype=torch.int32)
        for number, (text, _) in enumerate(rows):
            ids[number, : len(text)] = torch.tensor(text)
            segments[number, : len(text)] = 1
        classes = torch.tensor([label for _, label in rows])
        if self._config.kind != "encoder-decoder":
            return Batch(ids, classes, segments=segments)
        shifted = shifted_right(ids, self._config.decoder_start_id)
        return Batch(shifted, classes, segments=segments, source_ids=ids, source_segments=segments)


@dataclass(frozen=True)
class ClassifierResult:
    """What a finished run leaves beside the model directory."""

    training: TrainResult
    accuracy: float
    """Share of the held-out texts whose likeliest class is the right one."""
    loss: float
    """Mean held-out loss, nats per text."""
    planned_peak_bytes: int
    """The memory planned before the run; what it took is `training.peak_bytes`."""


def train_classifier(
    base: Path,
    labels: Sequence[str],
    train_texts: Sequence[LabelledText],
    held_out_texts: Sequence[LabelledText],
    run: Path,
    settings: TrainingSettings,
    runtime: Runtime,
    *,
    rows_per_step: int = 32,
    rows_per_micro_batch: int = 16,
    sequence_length: int = 256,
    ignore_plan: bool = False,
    progress: Progress = SILENT,
) -> ClassifierResult:
    """Train the model in `base` to tell `labels` apart; the classifier is written to `run`/model.

    Checkpoints, `metrics.jsonl` and resuming are those of every run. Raises UserError for a model that cannot have such
    a head, and, unless `ignore_plan`, where the memory planned for the run is more than there is.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"labels are {', '.join(labels) or 'none'}: give two or more, each once")
    rows = min(rows_per_step, rows_per_micro_batch)
    planned = _stated(base, run, rows, sequence_length, settings, runtime, ignore_plan, progress)
    model, config = load_weights(base, head="classification", labels=tuple(labels))
    refuse_quantized(model, "trained further")
    model = model.to(runtime.torch_device())
    tokenizer = Tokenizer.load(base)
    length, objective = planned.length, ClassificationObjective()
    held_out = EvaluationRows(LabelledRows(held_out_texts, tokenizer, config, length), rows_per_micro_batch)

    def measure(should_stop: Callable[[], bool]) -> Mapping[str, float]:
        found = evaluate_loss(model, objective, held_out, runtime, should_stop=should_stop)
        return {"held_out_loss": found.loss, "held_out_accuracy": found.scalars["correct"] / found.targets}

    source = PackedSource(
        [(LabelledRows(train_texts, tokenizer, config, length), None)],
        rows_per_step=rows_per_step,
        rows_per_micro_batch=rows_per_micro_batch,
        seed=runtime.seed,
    )
    result = train(
        model,
        objective,
        source,
        settings,
        runtime,
        store=CheckpointStore(run / "checkpoints", settings.keep_checkpoints, progress.note),
        evaluate=measure,
        log=run / "metrics.jsonl",
        progress=progress,
        planned_peak_bytes=planned.planned_bytes,
    )
    save_model_directory(run / "model", model, config, tokenizer)
    record_run(replace(planned, peak_bytes=result.peak_bytes), progress)
    found = measure(lambda: False)
    return ClassifierResult(result, found["held_out_accuracy"], found["held_out_loss"], planned.planned_bytes)


def _stated(
    base: Path,
    run: Path,
    rows: int,
    sequence_length: int,
    settings: TrainingSettings,
    runtime: Runtime,
    ignore: bool,
    progress: Progress,
) -> PlannedRun:
    """Say what the run will need, told from the config of `base` alone; UserError where it does not fit."""
    _, config = read_config(base)
    length = min(sequence_length, config.max_positions)
    give_back_freed_memory(everything=True)
    on_card = runtime.device.startswith("cuda")
    plan = estimate(
        config,
        rows_per_micro_batch=rows,
        sequence_length=length,
        precision=settings.precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        targets=0,  # no scores of tokens are computed
        packed_documents=True,
        device="cuda" if on_card else "cpu",
        framework_bytes=None if on_card else max(FRAMEWORK_BYTES, current_bytes(runtime.torch_device())),
    )
    state_plan(
        plan,
        "this run",
        device=runtime.device,
        ignore=ignore,
        override="ignore_plan",
        suggest=lambda: ["fewer rows_per_micro_batch", "gradient_checkpointing", "a shorter sequence_length"],
        progress=progress,
    )
    return PlannedRun(
        stage="classification",
        model=str(run),
        kind=config.kind,
        parameters=num_parameters(config),
        precision=settings.precision,
        device=runtime.device,
        rows=rows,
        length=length,
        planned_bytes=plan.peak_bytes,
        peak_bytes=0,
    )
