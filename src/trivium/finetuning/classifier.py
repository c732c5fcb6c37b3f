"""One run that turns a pretrained model into a classifier, for texts that are at hand in Python.

A recipe does the same from files, with all methods of `peft` (`run.py`); this is the short way: a directory in, texts
and the numbers of their classes, a directory out. Of the model alone the head's weights are fresh; all are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trivium.checkpoints.config_files import read_config
from trivium.checkpoints.directory import load_weights, save_model_directory
from trivium.checkpoints.store import CheckpointStore
from trivium.data.sources import EvaluationRows, PackedSource
from trivium.errors import UserError
from trivium.finetuning.classification import ClassificationObjective
from trivium.finetuning.head_rows import HeadExample, HeadRows, Wrapper
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.history import PlannedRun, record_run
from trivium.planner.memory import FRAMEWORK_BYTES, estimate
from trivium.planner.statement import state_plan
from trivium.progress import SILENT, Progress
from trivium.quantization.quantize import refuse_quantized
from trivium.runtime import Runtime, give_back_freed_memory
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import evaluate_loss
from trivium.training.loop import TrainResult, train
from trivium.training.memory import current_bytes
from trivium.training.settings import TrainingSettings


@dataclass(frozen=True)
class LabelledText:
    """One text and the number of its class."""

    text: str
    label: int


def labelled_rows(
    texts: Sequence[LabelledText], tokenizer: Tokenizer, config: ModelConfig, sequence_length: int
) -> HeadRows:
    """One text a row, cut at its end where it is too long.

    UserError when there are none, one has a class that the model's head has not, or there is no room.
    """
    if not texts:
        raise UserError("there are no labelled texts")
    for number, each in enumerate(texts, 1):
        if not 0 <= each.label < len(config.labels):
            raise UserError(f"labelled text {number} is of class {each.label}: there are {len(config.labels)}")
    wrapper = Wrapper(tokenizer, config, sequence_length)
    wrapped = wrapper.wrap_all([each.text for each in texts], [None] * len(texts))
    examples = [HeadExample(ids, types, each.label) for (ids, types), each in zip(wrapped, texts, strict=True)]
    return HeadRows(examples, wrapper.length, config, tokenizer.pad_id or 0)


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
    held_out = EvaluationRows(labelled_rows(held_out_texts, tokenizer, config, length), rows_per_micro_batch)

    def measure(should_stop: Callable[[], bool]) -> Mapping[str, float]:
        found = evaluate_loss(model, objective, held_out, runtime, should_stop=should_stop)
        return {"held_out_loss": found.loss, "held_out_accuracy": found.scalars["correct"] / found.targets}

    source = PackedSource(
        [(labelled_rows(train_texts, tokenizer, config, length), None)],
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
