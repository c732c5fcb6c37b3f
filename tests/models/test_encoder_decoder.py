"""Two stacks: packed pairs, padding, caches and reordered memories change nothing (R12, R13)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.samples import random_ids, relative
from trivium.models.build import build_model, initialise, set_gradient_checkpointing
from trivium.models.cache import Cache
from trivium.models.config import ModelConfig
from trivium.models.encoder_decoder import EncoderDecoder

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "max_positions": 256,
    "init_std": 0.3,
    "kind": "encoder-decoder",
}
VARIANTS = {
    "as T5": ModelConfig(**BASE, positions="relative", attention_scale=1.0, relative_buckets=8, decoder_layers=3),
    "as BART": ModelConfig(
        **BASE,
        norm="layernorm",
        norm_placement="post",
        positions="learned",
        position_offset=2,
        mlp="plain",
        activation="gelu",
        bias="all",
        embedding_norm=True,
        head_bias=True,
    ),
    "as Marian": ModelConfig(
        **BASE, norm="layernorm", norm_placement="post", positions="sinusoidal", mlp="plain", bias="all"
    ),
    "rotary, grouped": ModelConfig(**BASE, kv_heads=2, norm_placement="sandwich"),
}


def small(name: str, dtype: torch.dtype = torch.float64) -> EncoderDecoder:
    config = VARIANTS[name]
    model = build_model(config)
    initialise(model, config, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    assert isinstance(model, EncoderDecoder)
    return model.to(dtype).eval()


def numbered(lengths: tuple[int, ...]) -> Tensor:
    return torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))[None].int()


def packed_difference(name: str, source_numbers: tuple[int, ...] = (1, 2)) -> float:
    """Between pairs packed into one row (with padding behind) and each pair alone."""
    model = small(name)
    sources, targets = random_ids(model.config, 1, 15), random_ids(model.config, 1, 12, seed=1)
    source_lengths, target_lengths = (9, 6), (5, 7)
    segments = torch.tensor(source_numbers)[numbered(source_lengths) - 1]
    pad = torch.zeros(1, 4, dtype=torch.int32)
    with torch.no_grad():
        found = model(
            torch.cat((sources, random_ids(model.config, 1, 4, seed=7)), 1),
            torch.cat((targets, random_ids(model.config, 1, 4, seed=8)), 1),
            source_segments=torch.cat((segments, pad), 1),
            segments=torch.cat((numbered(target_lengths), pad), 1),
        )[:, :12]
        alone = [
            model(source, target)
            for source, target in zip(sources.split(source_lengths, 1), targets.split(target_lengths, 1), strict=True)
        ]
    return relative(found, torch.cat(alone, 1))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_packed_pairs_equal_pairs_alone(name: str) -> None:
    assert packed_difference(name) <= 1e-12


def test_broken_control_exchanged_sources_are_seen() -> None:
    assert packed_difference("as T5", (2, 1)) > 1e-3


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_cached_in_any_chunks_equals_uncached(name: str) -> None:
    model = small(name)
    source, ids = random_ids(model.config, 3, 11), random_ids(model.config, 3, 20, seed=1)
    expected = model(source, ids)
    for chunks in ([1] * 20, [7, 1, 12], [20]):
        memory = model.memory(model.encode(source))
        cache: Cache | None = Cache.empty(model.config, 3, 4, "cpu", torch.float64)
        parts = []
        for chunk in ids.split(chunks, 1):
            hidden, cache = model.hidden(chunk, memory=memory, cache=cache)
            parts.append(model.logits(hidden))
        assert relative(torch.cat(parts, 1), expected) <= 1e-12


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_rows_and_their_memories_are_reordered_together(name: str) -> None:
    model = small(name)
    source, ids = random_ids(model.config, 2, 11), random_ids(model.config, 2, 6, seed=1)
    segments = torch.tensor([[1] * 11, [0] * 4 + [1] * 7])
    memory = model.memory(model.encode(source, segments=segments), segments)
    _, cache = model.hidden(ids, memory=memory, cache=Cache.empty(model.config, 2, 16, "cpu", torch.float64))
    assert cache is not None
    index = torch.tensor([1, 1, 0])
    fresh = random_ids(model.config, 3, 2, seed=3)
    hidden, _ = model.hidden(fresh, memory=memory.reorder(index), cache=cache.reorder(index))
    for row, origin in enumerate(index.tolist()):
        real = segments[origin] > 0
        whole = torch.cat((ids[origin], fresh[row]))[None]
        expected = model(source[origin][real][None], whole)[:, -2:]
        assert relative(model.logits(hidden[row : row + 1]), expected) <= 1e-12


@pytest.mark.parametrize("name", list(VARIANTS))
def test_recomputed_activations_change_nothing_in_either_stack(name: str) -> None:
    model = small(name, torch.float32).train()
    source, ids = random_ids(model.config, 2, 9), random_ids(model.config, 2, 4, seed=1)
    gradients = []
    for on in (False, True):
        set_gradient_checkpointing(model, on)
        assert model.encoder.gradient_checkpointing is model.decoder.gradient_checkpointing is on
        gradients.append(torch.autograd.grad(model(source, ids).square().sum(), list(model.parameters())))
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*gradients, strict=True))


def test_half_precision_sees_padded_sources_from_long_targets() -> None:
    """More targets than one block of queries, whose mask is one row for all of them."""
    model = small("as BART", torch.float32)
    source, ids = random_ids(model.config, 2, 9), random_ids(model.config, 2, 200, seed=1)
    segments = torch.ones(2, 9, dtype=torch.int32)
    segments[1, 5:] = 0
    with torch.no_grad():
        expected = model(source, ids, source_segments=segments)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(source, ids, source_segments=segments)
    assert ((found.float() - expected).norm() / expected.norm()).item() < 0.05
