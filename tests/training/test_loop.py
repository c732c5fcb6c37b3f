"""The loop: it learns, it resumes to the bit, and it does between steps what its settings say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.small import TextSource, fails, same_bits, settings, small_model
from trivium.checkpoints.store import CheckpointStore
from trivium.data.batch import Batch
from trivium.errors import UserError
from trivium.models.decoder import Decoder
from trivium.runtime import Runtime
from trivium.training.evaluate import evaluate_loss
from trivium.training.log import read_log, repeatable
from trivium.training.loop import TrainResult, train
from trivium.training.objective import LossReport
from trivium.training.settings import TrainingSettings
from trivium.training.token_objective import TokenObjective

# A run with all that a resume could get wrong: dropout, accumulation, a schedule, evaluations, skipped steps.
FULL = settings(save_every_steps=4, evaluate_every_steps=3, on_non_finite="skip", log_every_steps=2)


@dataclass
class Stopwatch:
    """Breaks a run off, as an error would, when the loss of this step is asked for."""

    at_step: int
    source: TextSource
    steps: list[int] = field(default_factory=list)

    def micro_batches(self, step: int) -> Any:
        self.steps.append(step)
        if step == self.at_step:
            raise InterruptedError
        return self.source.micro_batches(step)

    def worst_case(self) -> Batch | None:
        return self.source.worst_case()

    @property
    def rows_per_step(self) -> int:
        return self.source.rows_per_step


def held_out(model: nn.Module) -> Callable[[Callable[[], bool]], Mapping[str, float]]:
    source = TextSource(4, 2)

    def evaluate(should_stop: Callable[[], bool]) -> Mapping[str, float]:
        batches = source.micro_batches(1000)
        return {
            "held_out_loss": evaluate_loss(model, TokenObjective(), batches, Runtime(), should_stop=should_stop).loss
        }

    return evaluate


def run(directory: Path, source: Any, chosen: TrainingSettings = FULL) -> tuple[TrainResult, Decoder]:
    model = small_model(dropout=0.1)
    result = train(
        model,
        TokenObjective(accuracy=True),
        source,
        chosen,
        Runtime(seed=5),
        store=CheckpointStore(directory / "checkpoints"),
        evaluate=held_out(model),
        log=directory / "metrics.jsonl",
    )
    return result, model


def final_tensors(directory: Path) -> dict[str, Tensor]:
    checkpoint = CheckpointStore(directory / "checkpoints").load_latest()
    assert checkpoint is not None
    return {f"{stem}/{name}": t for stem, named in checkpoint.tensors.items() for name, t in named.items()}


def log_of(directory: Path) -> list[dict[str, Any]]:
    return [repeatable(record) for record in read_log(directory / "metrics.jsonl")]


def test_learns(tmp_path: Path) -> None:
    source = TextSource(16, 8)
    result, _ = run(tmp_path, source, settings(steps=60, evaluate_every_steps=20))
    losses = [record["loss"] for record in log_of(tmp_path) if "loss" in record]
    assert len(losses) == 60
    assert losses[0] > 4.5 and losses[-1] < 3.4
    assert result.final_loss == losses[-1]
    measured = [record["held_out_loss"] for record in log_of(tmp_path) if "held_out_loss" in record]
    assert len(measured) == 3 and measured[-1] < 2.7
    assert result.evaluation == {"held_out_loss": measured[-1]}
    assert result.tokens == 60 * 16 * 16 and result.tokens_per_second > 0 and result.peak_bytes > 1 << 20


def assert_resumes_to_the_bit(tmp_path: Path, source_after: TextSource, absent: tuple[int, ...] = (6,)) -> None:
    source = TextSource(absent_steps=absent)
    whole, whole_model = run(tmp_path / "whole", source)
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", Stopwatch(5, source))
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", Stopwatch(11, source_after))
    watch = Stopwatch(-1, source_after)
    last, model = run(tmp_path / "parts", watch)
    assert (whole.resumed_from, last.resumed_from) == (None, 8)
    assert watch.steps == [8, 9, 10, 11]
    assert same_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    assert same_bits(dict(model.state_dict()), dict(whole_model.state_dict()))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    same = ("steps", "final_loss", "evaluation", "tokens", "skipped_steps")
    assert all(getattr(whole, name) == getattr(last, name) for name in same)


def test_resumes_to_the_bit(tmp_path: Path) -> None:
    assert_resumes_to_the_bit(tmp_path, TextSource(absent_steps=(6,)))


def test_control_other_data_after_the_resume_is_caught(tmp_path: Path) -> None:
    assert fails(lambda: assert_resumes_to_the_bit(tmp_path, TextSource(rows_per_step=9, absent_steps=(6,))))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first, _ = run(tmp_path, TextSource())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    watch = Stopwatch(0, TextSource())
    again, _ = run(tmp_path, watch)
    assert watch.steps == [] and again.resumed_from == FULL.steps
    assert (again.final_loss, again.evaluation) == (first.final_loss, first.evaluation)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path: Path) -> None:
    run(tmp_path, TextSource(), settings(steps=4, schedule="constant"))
    run(tmp_path, TextSource(), settings(steps=12, schedule="constant"))
    run(tmp_path / "whole", TextSource(), settings(steps=12, schedule="constant"))
    assert same_bits(final_tensors(tmp_path), final_tensors(tmp_path / "whole"))


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, TextSource())
    store = CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="the checkpoint lacks stack"):
        train(small_model(layers=3), TokenObjective(), TextSource(), FULL, Runtime(), store=store)


def test_saves_evaluates_and_logs_when_due(tmp_path: Path) -> None:
    run(tmp_path, TextSource(), replace_steps(FULL, 10))
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [8, 10]
    records = log_of(tmp_path)
    assert [r["step"] for r in records if "held_out_loss" in r] == [3, 6, 9, 10]
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8, 10]


def replace_steps(chosen: TrainingSettings, steps: int) -> TrainingSettings:
    return TrainingSettings(**{**chosen.model_dump(), "steps": steps})


def test_clipping_bounds_the_update() -> None:
    """With plain moments (beta 0) and a huge epsilon, an AdamW update is proportional to the gradient."""

    def moved(clip: float | None) -> float:
        model = small_model(dtype=torch.float64)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        chosen = settings(steps=1, clip_norm=clip, beta1=0, beta2=0, epsilon=1e6, weight_decay=0, warmup_steps=0)
        train(model, TokenObjective(), TextSource(), chosen, Runtime())
        squares = sum(float(((p.detach() - before[name]) ** 2).sum()) for name, p in model.named_parameters())
        return squares**0.5 * 1e6 / 0.01

    free = moved(None)
    assert moved(free * 2) == pytest.approx(free, rel=1e-9)
    assert moved(free / 4) == pytest.approx(free / 4, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_learn_as_fp32_does(precision: str, tmp_path: Path) -> None:
    losses = {}
    for chosen in ("fp32", precision):
        model = small_model()
        result = train(model, TokenObjective(), TextSource(), settings(precision=chosen), Runtime())
        losses[chosen] = result.final_loss
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert result.skipped_steps == 0
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses[precision] != losses["fp32"]


def test_fp16_overflow_halves_the_scale_and_goes_on(tmp_path: Path) -> None:
    class TooLarge:
        """A loss whose first gradients do not fit into fp16 until the scale has been halved three times."""

        def loss(self, model: nn.Module, batch: Batch) -> LossReport:
            report = TokenObjective().loss(model, batch)
            grown = report.sum * 1.0
            grown.register_hook(lambda grad: grad if grad <= 2 else grad * float("inf"))
            return LossReport(grown, report.count)

    chosen = settings(precision="fp16", on_non_finite="stop")
    result = train(small_model(), TooLarge(), TextSource(), chosen, Runtime(), log=tmp_path / "m.jsonl")
    assert result.skipped_steps == 3
    assert [r["step"] for r in read_log(tmp_path / "m.jsonl") if "event" in r] == [1, 2, 3]


def test_gradient_checkpointing_changes_no_bit() -> None:
    def weights(**changes: Any) -> dict[str, Tensor]:
        model = small_model(dropout=0.1)
        train(model, TokenObjective(), TextSource(), settings(steps=3, **changes), Runtime())
        assert model.stack.gradient_checkpointing == changes.get("gradient_checkpointing", False)
        return dict(model.state_dict())

    assert same_bits(weights(), weights(gradient_checkpointing=True))


def test_the_worst_case_runs_first_and_leaves_no_trace() -> None:
    seen: list[tuple[int, ...]] = []

    class Notes:
        def loss(self, model: nn.Module, batch: Batch) -> LossReport:
            seen.append(tuple(batch.ids.shape))
            return TokenObjective().loss(model, batch)

    def weights(worst: Batch | None) -> dict[str, Tensor]:
        model = small_model(dropout=0.1)
        train(model, Notes(), TextSource(worst=worst), settings(steps=2), Runtime())
        return dict(model.state_dict())

    worst = TextSource(length=48).rows(0, range(5))
    with_worst = weights(worst)
    assert seen[:3] == [(5, 48), (5, 48), (4, 16)]
    assert same_bits(with_worst, weights(None))


def test_out_of_memory_says_what_to_change() -> None:
    class Greedy:
        def loss(self, model: nn.Module, batch: Batch) -> LossReport:
            torch.empty(1 << 60)
            raise AssertionError

    source = TextSource(worst=TextSource().rows(0, range(5)))
    with pytest.raises(UserError, match=r"5 rows of 16 positions does not fit; lower data.rows_per_micro_batch"):
        train(small_model(), Greedy(), source, settings(), Runtime())


def test_parameters_that_no_gradient_reaches_are_named() -> None:
    model = small_model()
    model.stack.forgotten = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"does not depend on stack\.forgotten\.weight, stack\.forgotten\.bias"):
        train(model, TokenObjective(), TextSource(), settings(), Runtime())


def test_frozen_weights_stay_and_are_not_stored(tmp_path: Path) -> None:
    model = small_model()
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.clone()
    train(model, TokenObjective(), TextSource(), settings(), Runtime(), store=CheckpointStore(tmp_path))
    assert torch.equal(model.embedding.weight, before)
    stored = CheckpointStore(tmp_path).load_latest().tensors["model"]
    assert stored.keys() == {name for name, _ in model.named_parameters() if name != "embedding.weight"}


def test_listeners_progress_and_mfu() -> None:
    records: list[Mapping[str, Any]] = []
    said: list[str] = []

    class Screen:
        def start(self, description: str, total: int | None = None, unit: str = "") -> None:
            said.append(f"{description} {total} {unit}")

        def advance(self, amount: int = 1) -> None:
            said.append("advance")

        def note(self, text: str) -> None:
            said.append(text)

        def finish(self) -> None:
            said.append("finish")

    began = time.perf_counter()
    train(
        small_model(),
        TokenObjective(),
        TextSource(),
        settings(steps=3),
        Runtime(),
        listeners=[records.append],
        progress=Screen(),
        flops_per_token=1e6,
        peak_flops=1e9,
    )
    assert said[0] == "training 3 steps" and said.count("advance") == 3 and said[-1] == "finish"
    assert any(text.startswith("step 3/3: loss ") and "MFU" in text and "tokens/s" in text for text in said)
    for record in records:
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * 1e6 / 1e9)
    assert [record["tokens"] for record in records] == [128, 256, 384]
    assert 0 < records[-1]["seconds"] <= time.perf_counter() - began


def test_precision_of_the_settings_is_what_counts() -> None:
    runtime = replace(Runtime(), precision="bf16")
    model, other = small_model(), small_model()
    train(model, TokenObjective(), TextSource(), settings(steps=2), runtime)
    train(other, TokenObjective(), TextSource(), settings(steps=2), Runtime())
    assert same_bits(dict(model.state_dict()), dict(other.state_dict()))
