"""Held-out loss by running sums: equal to one pass, and nothing is changed by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.small import TextSource, small_model
from trivium.data.batch import Batch
from trivium.runtime import Runtime
from trivium.training.evaluate import EvaluationInterrupted, evaluate_loss
from trivium.training.objective import LossReport
from trivium.training.token_objective import TokenObjective

MASKED = (2, 3)


def test_equals_one_big_batch_whatever_the_batches() -> None:
    model = small_model(dtype=torch.float64)
    reports = [
        evaluate_loss(
            model,
            TokenObjective(accuracy=True),
            TextSource(8, rows, masked_rows=MASKED).micro_batches(0),
            Runtime(),
        )
        for rows in (8, 2, 1)
    ]
    whole = TextSource(8, 8, masked_rows=MASKED).rows(0, range(8))
    loss = nn.functional.cross_entropy(model(whole.ids).flatten(0, 1), whole.targets.flatten())
    for report in reports:
        assert report.loss == pytest.approx(loss.item(), rel=1e-12)
        assert (report.targets, report.tokens) == (whole.num_targets, whole.num_tokens)
        assert report.scalars == reports[0].scalars


def test_leaves_model_and_generators_as_found() -> None:
    model = small_model(dropout=0.3).train()
    model.stack.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = evaluate_loss(model, TokenObjective(), TextSource().micro_batches(0), Runtime())
    torch.rand(5)
    second = evaluate_loss(model, TokenObjective(), TextSource().micro_batches(0), Runtime())
    assert first == second, "no dropout in an evaluation"
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_random_objectives_draw_alike_each_time() -> None:
    class Noisy:
        def loss(self, model: nn.Module, batch: Batch) -> LossReport:
            return LossReport(torch.rand(()), 1)

    values = {evaluate_loss(small_model(), Noisy(), TextSource().micro_batches(0), Runtime()).loss for _ in range(3)}
    assert len(values) == 1


def test_breaks_off_between_batches_and_restores() -> None:
    model = small_model(dropout=0.3).train()
    answers = iter([False, True])
    with pytest.raises(EvaluationInterrupted):
        evaluate_loss(
            model, TokenObjective(), TextSource().micro_batches(0), Runtime(), should_stop=lambda: next(answers)
        )
    assert model.training


def test_nothing_to_evaluate_is_nan() -> None:
    report = evaluate_loss(small_model(), TokenObjective(), [], Runtime())
    assert math.isnan(report.loss) and report.targets == 0
