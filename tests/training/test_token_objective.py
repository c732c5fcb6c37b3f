"""Next-token loss: by the book, under a closed form, and blind to what it must not see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.small import VOCABULARY, TextSource, small_model
from trivium.data.batch import IGNORED, Batch
from trivium.training.token_objective import TokenObjective

ROWS = 4


def batch() -> Batch:
    return TextSource(ROWS, ROWS).rows(0, range(ROWS))


@pytest.mark.parametrize("tied", [True, False])
def test_equals_cross_entropy_of_the_logits(tied: bool) -> None:
    model = small_model(dtype=torch.float64, tied_embeddings=tied)
    given = batch()
    logits = model(given.ids).flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, given.targets.flatten(), reduction="sum")
    report = TokenObjective(chunk_tokens=5, accuracy=True).loss(model, given)
    assert report.sum.item() == pytest.approx(expected.item(), rel=1e-12)
    assert report.count == given.num_targets
    learned = given.targets.flatten() != IGNORED
    assert report.scalars["correct"] == (logits.argmax(-1) == given.targets.flatten())[learned].sum()
    gradients = torch.autograd.grad(report.sum, list(model.parameters()))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary() -> None:
    model = small_model()
    nn.init.zeros_(model.embedding.weight)
    report = TokenObjective().loss(model, batch())
    assert report.sum.item() / report.count == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_segments_and_positions_reach_the_model() -> None:
    """Two documents in one row cost what they cost in rows of their own."""
    model = small_model(dtype=torch.float64)
    ids = batch().ids
    targets = ids.roll(-1, dims=1)
    apart = TokenObjective().loss(model, Batch(ids, targets)).sum
    width = ids.shape[1]
    segments = torch.arange(1, ROWS + 1).repeat_interleave(width).reshape(1, -1)
    positions = torch.arange(width).repeat(ROWS).reshape(1, -1)
    packed = Batch(ids.reshape(1, -1), targets.reshape(1, -1), positions, segments)
    assert TokenObjective().loss(model, packed).sum.item() == pytest.approx(apart.item(), rel=1e-12)
    # Control: without segments the documents see each other.
    leaking = Batch(packed.ids, packed.targets, positions)
    assert TokenObjective().loss(model, leaking).sum.item() != pytest.approx(apart.item(), rel=1e-6)


def test_ignored_targets_cost_nothing() -> None:
    given = batch()
    nothing = Batch(given.ids, torch.full_like(given.targets, IGNORED))
    report = TokenObjective().loss(small_model(), nothing)
    assert (report.count, float(report.sum.detach())) == (0, 0.0)


def test_what_a_target_is_does_not_reach_other_positions() -> None:
    """Changing one target changes the loss by exactly that position's term."""
    model = small_model(dtype=torch.float64)
    given = batch()

    def loss(targets: Tensor) -> float:
        return TokenObjective().loss(model, Batch(given.ids, targets)).sum.item()

    place = (given.targets != IGNORED).nonzero()[0]
    changed = given.targets.clone()
    changed[tuple(place)] = (changed[tuple(place)] + 1) % VOCABULARY
    logprobs = model(given.ids).log_softmax(-1)[tuple(place)]
    old, new = given.targets[tuple(place)], changed[tuple(place)]
    assert loss(changed) - loss(given.targets) == pytest.approx((logprobs[old] - logprobs[new]).item(), rel=1e-9)
