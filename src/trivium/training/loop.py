"""The one loop: pretraining, fine-tuning and alignment give it a batch source and an objective, and nothing else.

One step: the gradient of the mean loss over all targets of all micro-batches and ranks (`gradients.py`); a judgement
whether it is sane; clipping; one AdamW update at the rate of this step's number (`schedule.py`). A step that is left
out changes neither weights nor moments: the run is then the run in which that step's data was absent.

Between steps: the log, evaluations, checkpoints, and a look whether a signal has asked to end. A run that is given a
store resumes from its newest checkpoint by itself, to the bit: weights, moments, counters and log are what they were,
the data is addressed by the step's number, and random draws are seeded by it.

Departures from custom: there is no wrapper around the model for several ranks (gradients are added up once per step,
after accumulation), and the largest micro-batch runs before the first step, so that a run that does not fit fails then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError
from trivium.models.build import set_gradient_checkpointing
from trivium.models.transformer import Stack
from trivium.progress import SILENT, Progress
from trivium.runtime import Runtime
from trivium.training.checkpoint import RunState, pack_state, restore, run_tensors
from trivium.training.compilation import compile_blocks
from trivium.training.distributed import Peers, digest_of_tensors
from trivium.training.evaluate import EvaluationInterrupted
from trivium.training.gradients import GradientMaker, StepReport
from trivium.training.memory import Ceiling, is_out_of_memory, peak_bytes, restart_peak
from trivium.training.objective import BatchSource, Objective
from trivium.training.optimizer import AdamW, trainable_parameters
from trivium.training.precision import LossScale
from trivium.training.reporting import Listener, Reporter
from trivium.training.schedule import learning_rate
from trivium.training.settings import TrainingSettings
from trivium.training.signals import Caught, Interrupted, catch_signals

# Measures held-out data; given a function that says, between batches, whether to break off (`evaluate.py`).
Evaluate = Callable[[Callable[[], bool]], Mapping[str, float]]

# So many names of unreached parameters are listed in the error.
NAMES_LISTED = 5


class EndTraining(Exception):
    """Raised by an evaluation: what it measured says that the run should go no further. It then ends as if done."""

    def __init__(self, values: Mapping[str, float], reason: str) -> None:
        super().__init__(reason)
        self.values, self.reason = values, reason


class NonFiniteError(UserError):
    """The run was ended by a loss or gradient that is not a sane number; nothing was updated by it."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves beside the trained model."""

    steps: int
    final_loss: float | None
    """Mean loss of the last step that was taken; None when none was."""
    evaluation: Mapping[str, float]
    """The last evaluation."""
    tokens: int
    """Input tokens trained on, over all ranks."""
    seconds: float
    """Time spent on steps, over all resumes."""
    skipped_steps: int
    peak_bytes: int
    resumed_from: int | None
    """The step of the checkpoint the run went on from."""
    ended: str = ""
    """Why the run ended before its last step, where an evaluation ended it."""

    @property
    def tokens_per_second(self) -> float:
        """Over the whole run, evaluations and saves excluded."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    model: nn.Module,
    objective: Objective,
    source: BatchSource,
    settings: TrainingSettings,
    runtime: Runtime,
    *,
    store: CheckpointStore | None = None,
    evaluate: Evaluate | None = None,
    log: Path | None = None,
    listeners: Sequence[Listener] = (),
    progress: Progress = SILENT,
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    planned_peak_bytes: int | None = None,
    learning_rate_factors: Mapping[str, float] | None = None,
    evaluate_first: bool = False,
) -> TrainResult:
    """Train `model` in place. `settings.precision` is what counts, whatever `runtime` says.

    `log`: the path of `metrics.jsonl`; `listeners` get the same records (rank 0 only). `flops_per_token`: FLOPs of
    training on one token; `peak_flops`: FLOP/s of all ranks at best; together they give the MFU. `planned_peak_bytes`:
    the size this process is to keep to, on a CPU (`training/memory.py`). `learning_rate_factors`: see `AdamW`.
    `evaluate_first`: also evaluate before the first step.
    Raises Interrupted after a signal (everything saved), NonFiniteError and other UserErrors (last checkpoint stands).
    """
    runtime = replace(runtime, precision=settings.precision)
    is_main = runtime.is_main
    reporter = Reporter(
        runtime.torch_device(),
        progress if is_main else SILENT,
        listeners if is_main else (),
        flops_per_token,
        peak_flops,
    )
    with catch_signals() as caught:
        trainer = Trainer(
            model, objective, source, settings, runtime, store, evaluate, reporter, caught, learning_rate_factors
        )
        watches = watch_memory(model, settings, runtime, planned_peak_bytes)
        restart_peak(runtime.torch_device())
        resumed_from = trainer.resume()
        state = trainer.state
        reporter.open(log if is_main else None, state.log_bytes, state.seconds, state.tokens)
        progress = progress if is_main else SILENT
        progress.start("training", settings.steps - state.step, "steps")
        try:
            trainer.run(progress, evaluate_first=evaluate_first)
        finally:
            progress.finish()
            reporter.close()
            for watch in watches:
                watch.remove()
    return trainer.result(resumed_from)


def watch_memory(
    model: nn.Module, settings: TrainingSettings, runtime: Runtime, planned_peak_bytes: int | None
) -> list[RemovableHandle]:
    """Keep this process near its plan; nothing is done without one, on a card, and for compiled blocks."""
    if planned_peak_bytes is None or settings.compile or runtime.torch_device().type != "cpu":
        return []
    blocks = [block for stack in model.modules() if isinstance(stack, Stack) for block in stack.blocks]
    return Ceiling(planned_peak_bytes).watch(blocks)


class Trainer:
    """A run in progress: the parts, and the state that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: BatchSource,
        settings: TrainingSettings,
        runtime: Runtime,
        store: CheckpointStore | None,
        evaluate: Evaluate | None,
        reporter: Reporter,
        caught: Caught,
        learning_rate_factors: Mapping[str, float] | None = None,
    ) -> None:
        device = runtime.torch_device()
        self.model = model.to(device).train()
        self.source, self.settings, self.runtime = source, settings, runtime
        self.store, self.evaluate, self.reporter, self.caught = store, evaluate, reporter, caught
        self.peers = Peers(runtime)
        set_gradient_checkpointing(model, settings.gradient_checkpointing)
        if settings.compile:
            compile_blocks(model, device)
        parameters = trainable_parameters(model)
        self.optimizer = AdamW(parameters, settings, learning_rate_factors)
        self.scale = LossScale.for_precision(settings.precision)
        self.gradients = GradientMaker(
            model, objective, list(parameters.values()), runtime, self.peers, source.rows_per_step
        )
        self.state = RunState()
        self.saved_step: int | None = None

    def resume(self) -> int | None:
        """Go on from the newest checkpoint, if there is one; its step."""
        with self.peers.together():
            checkpoint = self.store.load_latest() if self.store is not None else None
            if checkpoint is None and self.store is not None and self.runtime.is_main:
                self.store.require_space(run_tensors(self.model, self.optimizer))
        if checkpoint is not None:
            self.state = restore(checkpoint, self.model, self.optimizer, self.scale)
            self.saved_step = self.state.step
        if not self.peers.alone:
            self.peers.check_equal("the model's weights", digest_of_tensors(self.optimizer.parameters))
        return self.saved_step

    def run(self, progress: Progress, *, evaluate_first: bool = False) -> None:
        """Take the steps that are left, and do between them what is due."""
        fresh = self.state.step == 0 and not self.state.evaluation
        if self.state.evaluation_due or (evaluate_first and fresh and self.evaluate is not None):
            self.measure()
            self._end_if_told()
        if self.state.step < self.settings.steps and not self.state.ended:
            with self.peers.together():
                self.rehearse()
        while self.state.step < self.settings.steps and not self.state.ended:
            self.take_step()
            progress.advance()
            if self.evaluate is not None and self._due(self.settings.evaluate_every_steps):
                self.measure()
            if self._due(self.settings.save_every_steps):
                self.save()
            self._end_if_told()
        self.save()

    def _end_if_told(self) -> None:
        """Save and raise Interrupted once a signal has come to any rank."""
        if signal := self.peers.largest(self.caught.signal_number):
            self.save()
            raise Interrupted(signal, self.state.step)

    def rehearse(self) -> None:
        """Run the largest micro-batch forward and backward, twice as in accumulation, and forget it.

        Moments, gradients and activations then have all been in memory at once. UserError when they do not fit.
        """
        batch = self.source.worst_case()
        if batch is None:
            return
        try:
            device = self.runtime.torch_device()
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self.gradients.accumulate([batch, batch], self.state.step, self.scale.value)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            rows, positions = batch.ids.shape
            raise UserError(
                f"out of memory: a micro-batch of {rows} rows of {positions} positions does not fit; lower "
                "data.rows_per_micro_batch (the result stays the same) or set training.gradient_checkpointing=true"
            ) from None
        finally:
            self.optimizer.drop_gradients()

    def take_step(self) -> None:
        """One optimizer step, or the decision to leave it out."""
        began = time.perf_counter()
        step = self.state.step
        report = self.gradients.make(self.source.micro_batches(step), step, self.scale.value)
        if reason := self._why_not(report):
            self._leave_out(report, reason)
        else:
            self._update(report)
        self.optimizer.drop_gradients()
        self.state.step += 1
        self.state.seconds += time.perf_counter() - began
        if reason:
            self.reporter.event(self.state.step, reason)
        elif self._due(self.settings.log_every_steps):
            state, rate = self.state, learning_rate(step, self.settings)
            self.reporter.step(state.step, self.settings.steps, report, rate, state.seconds, state.tokens)

    def measure(self) -> None:
        """Evaluate; when a signal breaks it off, it is due again after the resume."""
        assert self.evaluate is not None
        try:
            values = self.evaluate(lambda: self.peers.alone and self.caught.signal_number != 0)
        except EvaluationInterrupted:
            self.state.evaluation_due = True
            return
        except EndTraining as end:
            values, self.state.ended = end.values, end.reason
        self.state.evaluation_due = False
        self.state.evaluation = dict(values)
        self.saved_step = None
        self.reporter.evaluation(self.state.step, values)
        if self.state.ended:
            self.reporter.event(self.state.step, self.state.ended)

    def save(self) -> None:
        """Save a checkpoint of this moment, unless it is saved already; ranks go on together."""
        if self.store is None or self.saved_step == self.state.step:
            return
        with self.peers.together():
            if self.runtime.is_main:
                self.state.log_bytes = self.reporter.sync()
                state = pack_state(self.state, self.optimizer, self.scale)
                self.store.save(self.state.step, run_tensors(self.model, self.optimizer), state)
        self.saved_step = self.state.step

    def result(self, resumed_from: int | None) -> TrainResult:
        """What the run has come to."""
        state = self.state
        return TrainResult(
            steps=state.step,
            final_loss=state.loss,
            evaluation=dict(state.evaluation),
            tokens=state.tokens,
            seconds=state.seconds,
            skipped_steps=state.skipped_steps,
            peak_bytes=peak_bytes(self.runtime.torch_device()),
            resumed_from=resumed_from,
            ended=state.ended,
        )

    def _due(self, every: int) -> bool:
        """Whether something done every so many steps (0: only at the end) is due after the step just done."""
        return self.state.step == self.settings.steps or (every > 0 and self.state.step % every == 0)

    def _why_not(self, report: StepReport) -> str | None:
        """Why this step must not be taken; None when it is sane."""
        if report.targets == 0:
            return "left out: there is nothing to learn in it"
        for what, value in (("loss", report.loss), ("gradient norm", report.gradient_norm)):
            if not abs(value) <= self.settings.spike_limit:
                return f"left out: the {what} is {value:g}"
        return None

    def _leave_out(self, report: StepReport, reason: str) -> None:
        """Count a step that is not taken, or end the run."""
        state, settings = self.state, self.settings
        state.skipped_steps += 1
        if abs(report.loss) <= settings.spike_limit and report.targets and self.scale.can_shrink:
            self.scale.overflowed()
            return
        where = f"step {state.step + 1} {reason}"
        if report.targets and settings.on_non_finite == "stop":
            raise NonFiniteError(
                f"{where}; nothing was updated and the last checkpoint stands: lower training.learning_rate, "
                "look at the data of this step, or set training.on_non_finite=skip"
            )
        state.consecutive_skips += 1
        if state.consecutive_skips >= settings.max_consecutive_skips:
            raise NonFiniteError(
                f"{where}, as were the {state.consecutive_skips - 1} before it; the last checkpoint stands: "
                "lower training.learning_rate, or look at the data"
            )

    def _update(self, report: StepReport) -> None:
        """Clip, and move the weights."""
        state, settings = self.state, self.settings
        self._check_reached()
        if settings.clip_norm is not None and report.gradient_norm > settings.clip_norm:
            gradients = [p.grad for p in self.optimizer.parameters.values() if p.grad is not None]
            torch._foreach_mul_(gradients, settings.clip_norm / report.gradient_norm)
        self.optimizer.step(learning_rate(state.step, settings))
        self.scale.succeeded()
        state.loss, state.consecutive_skips = report.loss, 0
        state.tokens += report.tokens

    def _check_reached(self) -> None:
        """UserError when the first step's loss left a trainable parameter without a gradient."""
        reached = self.gradients.reached or []
        names = [name for name, got in zip(self.optimizer.parameters, reached, strict=True) if not got]
        if names:
            more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
            raise UserError(
                f"the loss does not depend on {', '.join(names[:NAMES_LISTED])}{more}: these parameters would never "
                "be trained; freeze them, or use them"
            )
