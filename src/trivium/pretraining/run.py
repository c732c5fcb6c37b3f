"""One pretraining run, from a recipe to a run directory: the parts put together, in the order they are needed.

tokenizer -> data -> model -> the one loop -> held-out measure and samples -> model directory -> report

Everything a run needs to go on lies in its directory, and every step before the loop either finds its finished result
there or makes it again in the same way; so `pretrain` with the same recipe, `resume`, and a run that was never
interrupted end in the same bytes. Invariant (tests/pretraining/test_run.py): killed at any moments and started again,
a run leaves the weights, the optimizer's state and the loss log of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trivium.checkpoints.directory import load_weights, save_model_directory
from trivium.checkpoints.store import CheckpointStore
from trivium.data.objectives_settings import PairsSettings
from trivium.data.sources import EvaluationRows, PackedSource
from trivium.errors import UserError
from trivium.families import family_for
from trivium.machine import describe_machine, peak_product_flops
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.counts import model_facts, num_parameters, training_flops_per_token
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.planner.memory import MemoryPlan
from trivium.pretraining.generated import HeldOutPairs, held_out_pairs, scores, written
from trivium.pretraining.material import Material, num_cut_pairs, prepare_material, refuse_tokenizer, tokenizer_texts
from trivium.pretraining.measure import data_facts, held_out_measure
from trivium.pretraining.planning import memory_from_now, record_measured, state_run
from trivium.pretraining.recipe import PretrainRecipe, start_directory
from trivium.pretraining.samples import draw_samples
from trivium.progress import SILENT, Progress, short_number
from trivium.report.page import write_report
from trivium.runtime import Runtime, choose_runtime, prepare_process
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.distributed import Peers, process_group
from trivium.training.evaluate import evaluate_loss
from trivium.training.loop import Evaluate, TrainResult, train
from trivium.training.run_directory import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    SUMMARY,
    TOKENIZER,
    finished_summary,
    in_run_directory,
    recipe_of,
    saved_recipe,
    write_summary,
)
from trivium.training.token_objective import TokenObjective
from trivium.training.trackers import open_trackers


def pretrain(
    recipe: PretrainRecipe | Mapping[str, Any] | str | Path, progress: Progress = SILENT, *, ignore_plan: bool = False
) -> dict[str, Any]:
    """Train as the recipe says (settings, a mapping, or the path of a YAML file); returns the run's summary.

    A run directory that already holds this very recipe is continued where it stopped; one that holds another is
    refused, and so is a run whose planned memory does not fit, unless `ignore_plan` or the recipe says otherwise.
    Under `torchrun` every process calls this.
    """
    recipe = recipe_of(PretrainRecipe, recipe, ignore_plan)
    runtime = choose_runtime(recipe.device, recipe.training.precision, recipe.seed, recipe.threads)
    prepare_process(runtime)
    with process_group(runtime):
        return _Run(recipe, runtime, progress if runtime.is_main else SILENT).execute()


def resume(run_dir: str | Path, progress: Progress = SILENT, *, ignore_plan: bool = False) -> dict[str, Any]:
    """Go on with the run in `run_dir` from its newest good checkpoint, under the recipe saved there."""
    return pretrain(saved_recipe(PretrainRecipe, run_dir), progress, ignore_plan=ignore_plan)


class _Run:
    """The parts of one run as they come into being."""

    def __init__(self, recipe: PretrainRecipe, runtime: Runtime, progress: Progress) -> None:
        self.recipe, self.runtime, self.progress = recipe, runtime, progress
        self.directory = Path(recipe.run)
        self.peers = Peers(runtime)
        self.plan: MemoryPlan
        self.began = time.perf_counter()

    def execute(self) -> dict[str, Any]:
        """Everything, in order."""
        return in_run_directory(
            self.recipe,
            self.runtime,
            state_plan=self._state_plan,
            work=self._execute,
            write_report=write_report,
        )

    def _state_plan(self) -> None:
        self.plan = state_run(self.recipe, self.runtime, self.progress)

    def _execute(self) -> dict[str, Any]:
        config = self.recipe.model
        with self.peers.together():
            family_for(config)  # what could not be saved is not trained
            if self.runtime.is_main:
                self._learn_tokenizer()
        with self.peers.together():
            tokenizer = self._tokenizer()
            refuse_tokenizer(self.recipe, tokenizer)
            material = prepare_material(self.recipe, tokenizer, self.progress)
        with self.peers.together():
            source = material.training_source(self.runtime)
        self._introduce(config, material, source)
        model = self._begin(config)
        result = self._train(model, config, material, source)
        return self._finish(model, material, result)

    def _tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer: named, that of the model to start from, or the one learned."""
        path, start = self.recipe.tokenizer.path, self.recipe.start_from
        if start is None:
            return Tokenizer.load(path or self.directory / TOKENIZER)
        theirs = Tokenizer.load(start_directory(start))
        # The weights know what the ids of their own tokenizer mean, and no others.
        if path is not None and Tokenizer.load(path).fingerprint != theirs.fingerprint:
            raise UserError(f"tokenizer.path={path} is another tokenizer than that of start_from={start}: leave it out")
        return theirs

    def _begin(self, config: ModelConfig) -> Model:
        """The model before its first step."""
        if self.recipe.start_from is None:
            model = build_model(config)
            initialise(model, config, self.recipe.seed)
            return model
        model, found = load_weights(start_directory(self.recipe.start_from))
        if found != config:
            raise UserError(
                f"start_from: {self.recipe.start_from} is of another shape than `model` says: leave model out"
            )
        return model.train()

    def _learn_tokenizer(self) -> None:
        """Learn a tokenizer and keep it in the run, unless it is there already or the recipe says which."""
        own, recipe = self.directory / TOKENIZER, self.recipe
        named = recipe.tokenizer.path or recipe.start_from
        if named is None and not (own / "tokenizer.json").is_file():
            texts, size = tokenizer_texts(recipe), recipe.tokenizer.vocab_size
            Tokenizer.train(texts=texts, vocab_size=size, kind=recipe.model.kind, progress=self.progress).save(own)

    def _introduce(self, config: ModelConfig, material: Material, source: PackedSource) -> None:
        """Say what is going to happen before it does."""
        steps, data = self.recipe.training.steps, self.recipe.data
        self.progress.note(
            f"{short_number(num_parameters(config))} parameters; {steps} steps of {data.rows_per_step} rows of "
            f"{data.sequence_length} tokens, {steps / (source.num_rows / data.rows_per_step):.2f} times through "
            f"{short_number(material.num_tokens)} tokens"
        )
        if cut := num_cut_pairs(source):
            self.progress.note(f"{cut} pairs are longer than data.sequence_length={data.sequence_length} and were cut")

    def _train(self, model: Model, config: ModelConfig, material: Material, source: PackedSource) -> TrainResult:
        recipe, runtime = self.recipe, self.runtime
        smoothing = recipe.objective.label_smoothing if isinstance(recipe.objective, PairsSettings) else 0.0
        objective = TokenObjective(recipe.training.cross_entropy_chunk_tokens, smoothing)
        rows = material.evaluation_rows(runtime)
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
                objective,
                source,
                recipe.training,
                runtime,
                store=CheckpointStore(
                    self.directory / CHECKPOINTS, recipe.training.keep_checkpoints, self.progress.note
                ),
                evaluate=None if rows is None else self._evaluation(model, material, rows),
                log=self.directory / METRICS,
                listeners=trackers,
                progress=self.progress,
                flops_per_token=training_flops_per_token(config, recipe.data.sequence_length),
                peak_flops=None if peak is None else peak * runtime.world_size,
                # What reading the text has left in the process cannot be given back by the steps.
                planned_peak_bytes=memory_from_now(recipe, runtime).peak_bytes,
            )

    def _evaluation(self, model: Model, material: Material, rows: EvaluationRows) -> Evaluate:
        """What the loop calls to measure held-out rows (quick; the final measure scores every token)."""
        shards, wanted = material.held_out, self.recipe.objective
        assert shards is not None
        tokens_per_byte = shards.num_tokens / shards.num_bytes
        decodes = self.recipe.model.kind == "decoder"
        objective = TokenObjective(self.recipe.training.cross_entropy_chunk_tokens, accuracy=not decodes)
        pairs: HeldOutPairs | None = None
        if isinstance(wanted, PairsSettings) and wanted.generate_and_score != "none" and self.runtime.is_main:
            pairs = held_out_pairs(material, wanted.validation_pairs_to_generate)

        def measure(should_stop: Callable[[], bool]) -> Mapping[str, float]:
            found = evaluate_loss(model, objective, rows, self.runtime, should_stop=should_stop)
            values = {"held_out_loss": found.loss}
            if wanted.name == "causal":
                values["held_out_bits_per_byte"] = found.loss * tokens_per_byte / math.log(2)
            if not decodes:
                values["held_out_accuracy"] = found.scalars.get("correct", 0.0) / max(1, found.targets)
            if pairs is not None and isinstance(wanted, PairsSettings) and isinstance(model, EncoderDecoder):
                texts = written(model, material, pairs, should_stop=should_stop)
                found_scores = scores(wanted.generate_and_score, texts, pairs.targets)
                values |= {f"held_out_{name}": value for name, value in found_scores.items()}
            return values

        return measure

    def _finish(self, model: Model, material: Material, result: TrainResult) -> dict[str, Any]:
        """Measure and keep the trained model: the whole summary on rank 0, the loop's figures on the others."""
        recipe, earlier = self.recipe, finished_summary(self.directory)
        summary: dict[str, Any] = {
            "run": str(self.directory),
            "model": str(self.directory / MODEL),
            "status": "finished",
            "steps": result.steps,
            "final_loss": result.final_loss,
            "tokens": result.tokens,
            "tokens_per_second": result.tokens_per_second,
            # Measuring a finished run again says nothing of what training it took.
            "peak_bytes": earlier.get("peak_bytes") or result.peak_bytes,
            "planned_peak_bytes": earlier.get("planned_peak_bytes") or self.plan.peak_bytes,
        }
        with self.peers.together():
            if self.runtime.is_main:
                save_model_directory(self.directory / MODEL, model, recipe.model, material.tokenizer)
                self.progress.note(f"model saved in {self.directory / MODEL}")
                summary |= {
                    "plan": self.plan.to_dict(),
                    "model_facts": model_facts(recipe.model),
                    "data_facts": data_facts(recipe.data, material),
                    **held_out_measure(model, material, self.runtime, self.progress),
                    "samples": draw_samples(model, material, self.progress),
                    "machine": describe_machine(),
                    "seconds": earlier.get("seconds") or time.perf_counter() - self.began,
                    "report": str(self.directory / "report.html"),
                }
                if (theirs := recipe.reference) is not None:
                    summary["reference"] = {"name": theirs.name, "value": theirs.value, "unit": theirs.unit}
                write_summary(self.directory / SUMMARY, summary)
                write_report(self.directory)
                if not earlier:
                    pair = summary["planned_peak_bytes"], summary["peak_bytes"]
                    record_measured(recipe, self.runtime, *pair, self.progress)
                self.progress.note(f"report: {summary['report']}")
        return summary
