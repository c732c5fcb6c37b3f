"""One fine-tuning run, from a recipe to a run directory: the parts put together, in the order they are needed.

plan -> tokenizer and rows -> model, its head, its adapter -> the one loop -> adapter or model directory -> report

Beside the task, what the model could do before is measured, before the first step and at every evaluation
(`forgetting.py`). A method that adds weights leaves `adapter/`, any other `model/`. As in pretraining everything that
a run needs to go on lies in its directory. Invariant its test checks: killed at any moments and started again, a run
leaves the weights, the optimizer's state and the loss log of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.store import CheckpointStore
from trivium.data.sources import EvaluationRows, PackedSource
from trivium.files import write_atomically
from trivium.finetuning import answering, classification, instruct, regression, seq2seq, tagging
from trivium.finetuning.forgetting import Head, Ledger, general_texts, statement
from trivium.finetuning.planning import record_measured, state_run
from trivium.finetuning.prepared import Prepare, PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.task_settings import TaskName
from trivium.finetuning.trained_model import (
    num_trainable,
    num_weights,
    save_result,
    tokenizer_and_config,
    trainable_model,
)
from trivium.machine import describe_machine, peak_product_flops
from trivium.models.build import Model
from trivium.models.counts import model_facts, training_flops_per_token
from trivium.peft.apply import Adapter, learning_rate_factors
from trivium.peft.settings import ADDED
from trivium.planner.parts import Parts
from trivium.progress import SILENT, Progress, short_number
from trivium.report.page import write_report
from trivium.runtime import Runtime, choose_runtime, give_back_freed_memory, prepare_process
from trivium.training.distributed import Peers, process_group
from trivium.training.evaluate import evaluate_loss
from trivium.training.log import read_log
from trivium.training.loop import EndTraining, Evaluate, TrainResult, train
from trivium.training.run_directory import (
    ADAPTER,
    CHECKPOINTS,
    METRICS,
    MODEL,
    SUMMARY,
    finished_summary,
    in_run_directory,
    recipe_of,
    saved_recipe,
    write_summary,
)
from trivium.training.trackers import open_trackers

TASKS: dict[TaskName, Prepare] = {
    "instruct": instruct.prepare,
    "classify": classification.prepare,
    "regress": regression.prepare,
    "tag": tagging.prepare,
    "answer": answering.prepare,
    "seq2seq": seq2seq.prepare,
}
BEFORE = "samples_before.json"


def finetune(
    recipe: FinetuneRecipe | Mapping[str, Any] | str | Path, progress: Progress = SILENT, *, ignore_plan: bool = False
) -> dict[str, Any]:
    """Train as the recipe says (settings, a mapping, or the path of a YAML file); returns the run's summary.

    A run directory that already holds this very recipe is continued where it stopped; one that holds another is
    refused, and so is a run whose planned memory does not fit, unless `ignore_plan` or the recipe says otherwise.
    Under `torchrun` every process calls this.
    """
    recipe = recipe_of(FinetuneRecipe, recipe, ignore_plan)
    runtime = choose_runtime(recipe.device, recipe.training.precision, recipe.seed, recipe.threads)
    prepare_process(runtime)
    with process_group(runtime):
        return _Run(recipe, runtime, progress if runtime.is_main else SILENT).execute()


def resume(run_dir: str | Path, progress: Progress = SILENT, *, ignore_plan: bool = False) -> dict[str, Any]:
    """Go on with the run in `run_dir` from its newest good checkpoint, under the recipe saved there."""
    return finetune(saved_recipe(FinetuneRecipe, run_dir), progress, ignore_plan=ignore_plan)


class _Run:
    """The parts of one run as they come into being."""

    def __init__(self, recipe: FinetuneRecipe, runtime: Runtime, progress: Progress) -> None:
        self.recipe, self.runtime, self.progress = recipe, runtime, progress
        self.directory = Path(recipe.run)
        self.peers = Peers(runtime)
        self.plan: Parts
        self.began = time.perf_counter()

    def execute(self) -> dict[str, Any]:
        """Everything, in order."""
        return in_run_directory(
            self.recipe,
            self.runtime,
            state_plan=self._state_plan,
            work=self._work,
            write_report=write_report,
        )

    def _state_plan(self) -> None:
        _, config = tokenizer_and_config(self.recipe.start_from)
        self.plan = state_run(self.recipe, config, self.runtime, self.progress)

    def _work(self) -> dict[str, Any]:
        recipe = self.recipe
        with self.peers.together():
            tokenizer, config = tokenizer_and_config(recipe.start_from)
            task = TASKS[recipe.task.name](recipe, tokenizer, config, self.progress)
            source = training_source(task, recipe, self.runtime)
            for note in task.notes:
                self.progress.note(note)
        with self.peers.together():
            bundle, adapter = trainable_model(recipe, task, self.progress)
            ledger = self._ledger(bundle, task)
        self._introduce(bundle.model, adapter, source)
        before = self._samples_before(bundle.model, task)
        result = self._train(bundle.model, task, source, ledger)
        return self._finish(bundle, adapter, task, ledger, result, before)

    def _ledger(self, bundle: Bundle, task: PreparedTask) -> Ledger:
        """The ledger, and the head that the model came with where the task has put another in its place."""
        _, config = tokenizer_and_config(self.recipe.start_from)
        head = None
        if bundle.config.head != config.head and config.head == "lm" and self.recipe.forgetting.paths:
            whole = load(self.recipe.start_from)
            head = Head(whole.model.head, whole.config)
        ledger = Ledger(
            general_texts(self.recipe.forgetting),
            bundle.tokenizer,
            config,
            replace(self.runtime, rank=0, world_size=1),
            head,
        )
        if ledger.why_not:
            self.progress.note(f"what is forgotten is not measured: {ledger.why_not}")
        return ledger

    def _introduce(self, model: Model, adapter: Adapter, source: PackedSource) -> None:
        """Say what is going to happen before it does."""
        steps, data = self.recipe.training.steps, self.recipe.data
        trained = num_trainable(model)
        rows = source.num_rows
        self.progress.note(
            f"{short_number(trained)} of {short_number(num_weights(model, adapter))} parameters are trained "
            f"({self.recipe.peft.method}); {steps} steps of {data.rows_per_step} rows, "
            f"{steps * data.rows_per_step / rows:.2f} times through {rows} rows"
        )

    def _samples_before(self, model: Model, task: PreparedTask) -> list[dict[str, Any]]:
        """What the model says before it learns; kept, since a run that goes on no longer knows."""
        path = self.directory / BEFORE
        with self.peers.together():
            if self.runtime.is_main and not path.is_file():
                drawn = task.samples(model, self.progress)
                write_atomically(path, json.dumps(drawn, ensure_ascii=False) + "\n")
                give_back_freed_memory()
        return list(json.loads(path.read_text(encoding="utf-8"))) if self.runtime.is_main else []

    def _train(self, model: Model, task: PreparedTask, source: PackedSource, ledger: Ledger) -> TrainResult:
        recipe, runtime = self.recipe, self.runtime
        peak = peak_product_flops(runtime.device, recipe.training.precision)
        with contextlib.ExitStack() as open_ones:
            trackers = []
            with self.peers.together():
                if runtime.is_main:
                    trackers = open_trackers(recipe.training, self.directory, recipe.model_dump())
            for tracker in trackers:
                open_ones.callback(tracker.close)
            return train(
                model,
                task.objective,
                source,
                recipe.training,
                runtime,
                store=CheckpointStore(
                    self.directory / CHECKPOINTS, recipe.training.keep_checkpoints, self.progress.note
                ),
                evaluate=self._evaluation(model, task, ledger),
                log=self.directory / METRICS,
                listeners=trackers,
                progress=self.progress,
                flops_per_token=training_flops_per_token(model.config, recipe.data.sequence_length),
                peak_flops=None if peak is None else peak * runtime.world_size,
                planned_peak_bytes=self.plan.peak_bytes,
                learning_rate_factors=learning_rate_factors(model),
                evaluate_first=True,
            )

    def _evaluation(self, model: Model, task: PreparedTask, ledger: Ledger) -> Evaluate | None:
        """What the loop calls to measure held-out rows, and what is left of the rest."""
        if not task.held_out and ledger.why_not:
            return None
        held_out = {name: self._rows(rows) for name, rows in task.held_out.items()}
        allowed = self.recipe.forgetting.stop_at_loss

        def measure(should_stop: Callable[[], bool]) -> Mapping[str, float]:
            values = held_out_losses(model, task, held_out, self.runtime, should_stop)
            if self.runtime.is_main and task.measure is not None:
                found = task.measure(model, should_stop, self.progress)
                values |= {f"held_out_{name}": value for name, value in found.items()}
            if ledger.why_not:
                return values
            general = ledger.measure(model, should_stop) if self.runtime.is_main else 0.0
            values[ledger.measure_name] = general = self.peers.from_main(general)
            give_back_freed_memory()
            lost = general - self._general_before(ledger, general)
            if allowed is not None and lost > allowed:
                reason = f"ended: {lost:.4g} of {ledger.measure_name} are lost, and forgetting.stop_at_loss={allowed:g}"
                raise EndTraining(values, reason)
            return values

        return measure

    def _general_before(self, ledger: Ledger, now: float) -> float:
        """The ledger's first value; before the first step, the present one."""
        known = 0.0
        if self.runtime.is_main:
            points = [record for record in self._log() if ledger.measure_name in record]
            known = float(points[0][ledger.measure_name]) if points else now
        return self.peers.from_main(known)

    def _log(self) -> list[dict[str, Any]]:
        path = self.directory / METRICS
        return read_log(path) if path.is_file() else []

    def _rows(self, rows: Any) -> EvaluationRows:
        data = self.recipe.data
        return EvaluationRows(
            rows,
            data.rows_per_micro_batch,
            max_rows=data.evaluation_rows,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
        )

    def _finish(
        self,
        bundle: Bundle,
        adapter: Adapter,
        task: PreparedTask,
        ledger: Ledger,
        result: TrainResult,
        before: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Measure and keep what was trained: the whole summary on rank 0, the loop's figures on the others."""
        recipe, earlier = self.recipe, finished_summary(self.directory)
        place = self.directory / (ADAPTER if recipe.peft.method in ADDED else MODEL)
        summary: dict[str, Any] = {
            "run": str(self.directory),
            "model": str(place),
            "status": "finished",
            "stage": "finetune",
            "task": recipe.task.name,
            "steps": result.steps,
            "final_loss": result.final_loss,
            "tokens": result.tokens,
            "tokens_per_second": result.tokens_per_second,
            "peak_bytes": earlier.get("peak_bytes") or result.peak_bytes,
            "planned_peak_bytes": earlier.get("planned_peak_bytes") or self.plan.peak_bytes,
            "num_parameters": num_weights(bundle.model, adapter),
            "num_trainable_parameters": num_trainable(bundle.model),
        }
        with self.peers.together():
            if self.runtime.is_main:
                save_result(place, bundle, adapter, recipe)
                self.progress.note(f"{place.name} saved in {place}")
                after = task.samples(bundle.model, self.progress)
                summary |= {
                    "plan": self.plan.to_dict(),
                    "model_facts": model_facts(bundle.config),
                    "data_facts": dict(task.facts or {}),
                    "held_out": dict(result.evaluation),
                    "before": self._first_evaluation(),
                    "ledger": self._statement(ledger),
                    "samples": [{**now, "before": then["text"]} for now, then in zip(after, before, strict=True)],
                    "machine": describe_machine(),
                    "seconds": earlier.get("seconds") or time.perf_counter() - self.began,
                    "report": str(self.directory / "report.html"),
                }
                write_summary(self.directory / SUMMARY, summary)
                write_report(self.directory)
                if not earlier:
                    pair = summary["planned_peak_bytes"], summary["peak_bytes"]
                    record_measured(recipe, bundle.config, self.runtime, *pair, self.progress)
                self.progress.note(f"report: {summary['report']}")
        return summary

    def _evaluations(self) -> list[dict[str, Any]]:
        return [record for record in self._log() if "loss" not in record and "event" not in record]

    def _first_evaluation(self) -> dict[str, Any]:
        found = self._evaluations()
        return {key: value for key, value in found[0].items() if key != "step"} if found else {}

    def _statement(self, ledger: Ledger) -> dict[str, Any]:
        """Gained against lost; the reason where nothing was measured."""
        name = ledger.measure_name
        points = [
            {"step": record["step"], "general": record[name], **_kept(record, "held_out_loss")}
            for record in self._evaluations()
            if record.get(name) is not None
        ]
        if not points:
            return {"not_measured": ledger.why_not or "no evaluation was made"}
        replay = self.recipe.data.replay
        return statement(points, name, replay.share if replay else 0.0)


def _kept(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: record[key]} if record.get(key) is not None else {}


def training_source(task: PreparedTask, recipe: FinetuneRecipe, runtime: Runtime) -> PackedSource:
    """The batches of this process."""
    return PackedSource(
        [(each.rows, each.weight) for each in task.train],
        rows_per_step=recipe.data.rows_per_step,
        rows_per_micro_batch=recipe.data.rows_per_micro_batch,
        seed=recipe.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )


def held_out_losses(
    model: Model,
    task: PreparedTask,
    held_out: Mapping[str, EvaluationRows],
    runtime: Runtime,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """{"held_out_loss"}: the mean over all targets, and of each source where there are several."""
    total, targets, values = 0.0, 0, {}
    for name, rows in held_out.items():
        found = evaluate_loss(model, task.objective, rows, runtime, should_stop=should_stop)
        total, targets = total + found.loss_sum, targets + found.targets
        if len(held_out) > 1:
            values[f"held_out_loss_{name}"] = found.loss
    return {"held_out_loss": total / targets, **values} if targets else values
