"""Heads: what they give, which state stands for a text, and that a projection multiplied out is the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.samples import random_ids, relative
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.encoder import Encoder
from trivium.models.heads import Head

SHAPES: dict[str, tuple[int, ...]] = {
    "lm": (2, 7, 61),
    "classification": (2, 3),
    "token_classification": (2, 7, 3),
    "span": (2, 7, 2),
    "scalar": (2,),
    "none": (2, 7, 32),
}


def encoder(head: str, **more: Any) -> Encoder:
    labels = ("a", "b", "c") if "classification" in head else ()
    config = ModelConfig(
        vocab_size=61, width=32, layers=2, heads=4, kind="encoder", head=head, labels=labels, init_std=0.3, **more
    )
    model = build_model(config)
    initialise(model, config, 0)
    assert isinstance(model, Encoder)
    return model.eval()


@pytest.mark.parametrize("head", list(SHAPES))
@pytest.mark.parametrize("hidden", ["none", "tanh", "relu", "activation", "activation_norm"])
def test_shapes(head: str, hidden: str) -> None:
    model = encoder(head, head_hidden=hidden)
    assert model(random_ids(model.config, 2, 7)).shape == SHAPES[head]


@pytest.mark.parametrize("more", [{}, {"tied_embeddings": False}, {"head_bias": True}, {"logit_softcap": 2.0}])
def test_projection_multiplied_out_is_the_logits(more: dict[str, Any]) -> None:
    model = encoder("lm", head_hidden="activation_norm", logit_scale=0.5, **more)
    hidden = model.hidden(random_ids(model.config, 2, 7))
    assert relative(model.projection(hidden).logits(), model.logits(hidden)) <= 1e-6
    with pytest.raises(ValueError, match="no token scores"):
        classifier = encoder("classification")
        classifier.logits(classifier.hidden(random_ids(classifier.config, 1, 3)))


def test_which_state_stands_for_a_text() -> None:
    states = torch.arange(2 * 5 * 4, dtype=torch.float32).view(2, 5, 4)
    segments = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = {
        "first": (states[0, 2], states[1, 0]),
        "last": (states[0, 4], states[1, 2]),
        "mean": (states[0, 2:].mean(0), states[1, :3].mean(0)),
    }
    for pooling, (first, second) in expected.items():
        head = Head(encoder("classification", pooling=pooling).config)
        assert torch.equal(head.pooled(states, segments), torch.stack((first, second)))
        assert head.pooled(states).shape == (2, 4)


def test_an_encoder_sees_both_ways_and_a_window_bounds_it() -> None:
    ids = random_ids(encoder("lm").config, 1, 9)
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 61
    for model, reached in ((encoder("lm"), True), (encoder("lm", sliding_window=3), False)):
        assert torch.equal(model(ids)[0, 0], model(changed)[0, 0]) is not reached


def test_segment_types_are_told_apart() -> None:
    model = encoder("lm", segment_types=2)
    ids = random_ids(model.config, 1, 6)
    zero = torch.zeros_like(ids)
    assert torch.equal(model(ids), model(ids, types=zero))
    assert relative(model(ids, types=zero + 1), model(ids)) > 1e-3
