"""Tiny models of each kind with a head, and a few rows of unequal length for each of the four objectives."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from adapted_models import CONFIGS
from trivium.data.batch import IGNORED, Batch
from trivium.finetuning.answering import SpanObjective
from trivium.finetuning.classification import ClassificationObjective
from trivium.finetuning.head_rows import HeadExample, HeadRows
from trivium.finetuning.regression import RegressionObjective
from trivium.finetuning.tagging import TaggingObjective
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import Head
from trivium.training.objective import Objective

LABELS = ("a", "b", "c")
TASKS: dict[str, tuple[Objective, Head, tuple[str, ...]]] = {
    "classify": (ClassificationObjective(), "classification", LABELS),
    "regress": (RegressionObjective(), "classification", ("score",)),
    "tag": (TaggingObjective(), "token_classification", LABELS),
    "answer": (SpanObjective(), "span", ()),
}


def model_for(name: str, task: str) -> Model:
    """In fp64, without dropout, with weights and biases away from 0 and 1."""
    _, head, labels = TASKS[task]
    pooling = "first" if name == "bert" else "last"
    types = {"segment_types": 2} if name == "bert" else {}
    config = CONFIGS[name].changed(head=head, labels=labels, pooling=pooling, **types)
    model = build_model(config)
    initialise(model, config, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.double()


def rows_for(name: str, task: str, lengths: Iterable[int] = (3, 9, 4, 7, 5, 9, 6, 2)) -> HeadRows:
    """One row of each length, half of them pairs."""
    draw = np.random.default_rng(5)
    examples = []
    for number, length in enumerate(lengths):
        ids = draw.integers(1, 50, length).astype(np.int32)
        types = (np.arange(length) >= length // 2).astype(np.int8) if number % 2 and name == "bert" else None
        tags = draw.integers(0, 3, length)
        target = {
            "classify": int(tags[0]),
            "regress": float(draw.normal()),
            "tag": np.where(draw.random(length) < 0.3, IGNORED, tags),
            "answer": (int(draw.integers(length)), int(draw.integers(length))),
        }[task]
        examples.append(HeadExample(ids, types, target))
    config = CONFIGS[name].changed(decoder_start_id=0)
    return HeadRows(examples, 16, config, pad_id=0)


def loss_and_gradient(model: Model, task: str, batches: Iterable[Batch]) -> tuple[float, int, Tensor]:
    """(summed loss, count, gradient of all weights) over these batches."""
    model.zero_grad(set_to_none=True)
    total, count = 0.0, 0
    for batch in batches:
        report = TASKS[task][0].loss(model, batch)
        report.sum.backward()
        total, count = total + float(report.sum.detach()), count + int(report.count)
    return total, count, torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
