"""The decoder: documents do not leak (R12), padding and packing change nothing, recomputation changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.samples import BASE, VARIANTS, random_ids, relative, small_model
from trivium.models.build import build_model, initialise, set_gradient_checkpointing
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.positions import positions_in_segments

# Lengths of the documents of a row: the second starts beyond the blocks in which attention kernels take keys.
LENGTHS = (530, 40, 30)
Forward = Callable[[Decoder, Tensor, Tensor], Tensor]


def segments_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))[None].int()


def plain(model: Decoder, ids: Tensor, segments: Tensor) -> Tensor:
    return model(ids, segments=segments)


def under_autocast(model: Decoder, ids: Tensor, segments: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = model(ids, segments=segments)
    return logits


def without_mask(model: Decoder, ids: Tensor, segments: Tensor) -> Tensor:
    """The broken control: positions restart at each document, attention does not."""
    return model(ids, positions=positions_in_segments(segments))


def influence(name: str, forward: Forward) -> float:
    """How much other tokens in document A change logits of B and C, and the gradient of their loss: largest change."""
    model = small_model(VARIANTS[name])
    ids, segments = random_ids(model.config, 1, sum(LENGTHS)), segments_of(LENGTHS)
    changed = ids.clone()
    changed[:, : LENGTHS[0]] = (ids[:, : LENGTHS[0]] + random_ids(model.config, 1, LENGTHS[0], seed=5)) % 61
    changed[:, LENGTHS[0] - 1] = (ids[:, LENGTHS[0] - 1] + 1) % 61
    results = []
    for row in (ids, changed):
        logits = forward(model, row, segments)[:, LENGTHS[0] :]
        loss = F.cross_entropy(logits[0, :-1].float(), ids[0, LENGTHS[0] + 1 :])
        results.append((logits, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)))
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("forward", [plain, under_autocast])
def test_no_document_reaches_another(name: str, forward: Forward) -> None:
    assert influence(name, forward) == 0.0


@pytest.mark.parametrize("name", ["llama", "no positions, gelu"])
def test_broken_control_restarting_positions_alone_leaks(name: str) -> None:
    assert influence(name, without_mask) > 1e-3


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_packed_documents_equal_documents_alone(name: str) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = small_model(VARIANTS[name], dtype)
        lengths = (7, 20, 1, 33)
        ids = random_ids(model.config, 1, sum(lengths))
        packed = model(ids, segments=segments_of(lengths)).split(lengths, 1)
        for document, found in zip(ids.split(lengths, 1), packed, strict=True):
            assert relative(found, model(document)) <= bound


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model = small_model(VARIANTS[name])
    ids = random_ids(model.config, 2, 24)
    expected = model(ids)
    for pad in (0, 1, 2, 3, 8, 17, 31, 64):
        filler, real = random_ids(model.config, 2, pad, seed=pad), torch.ones(2, 24, dtype=torch.int32)
        none = torch.zeros(2, pad, dtype=torch.int32)
        left = model(torch.cat((filler, ids), 1), segments=torch.cat((none, real), 1))
        right = model(torch.cat((ids, filler), 1), segments=torch.cat((real, none), 1))
        assert left.isfinite().all() and right.isfinite().all()
        assert relative(left[:, pad:], expected) <= 1e-5
        assert relative(right[:, :24], expected) <= 1e-5


@torch.no_grad()
def test_the_future_has_no_influence() -> None:
    model = small_model(VARIANTS["llama"])
    ids = random_ids(model.config, 1, 30)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 61
    assert torch.equal(model(ids)[:, :20], model(changed)[:, :20])


def test_one_segment_equals_none() -> None:
    model = small_model(VARIANTS["llama"], torch.float64)
    ids = random_ids(model.config, 2, 30)
    assert relative(model(ids, segments=torch.ones(2, 30, dtype=torch.int32)), model(ids)) <= 1e-12


@pytest.mark.parametrize("name", list(VARIANTS))
def test_recomputed_activations_change_nothing(name: str) -> None:
    """Bit for bit, dropout included."""
    model = small_model(VARIANTS[name].changed(dropout=0.1, attention_dropout=0.1)).train()
    ids = random_ids(model.config, 2, 16)
    gradients = []
    for on in (False, True):
        set_gradient_checkpointing(model, on)
        assert model.stack.gradient_checkpointing is on
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(F.cross_entropy(model(ids).mT, ids), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only() -> None:
    for config in (BASE.changed(dropout=0.5), BASE.changed(attention_dropout=0.5)):
        model = small_model(config)
        ids = random_ids(config, 1, 16)
        without = small_model(config.changed(dropout=0.0, attention_dropout=0.0))(ids)
        assert torch.equal(model(ids), without)
        assert relative(model.train()(ids), without) > 1e-2


def test_hidden_states_make_the_logits() -> None:
    for name in ("llama", "multi-query, untied"):
        model = small_model(VARIANTS[name])
        ids = random_ids(model.config, 2, 9)
        hidden, cache = model.hidden(ids)
        assert cache is None
        assert hidden.shape == (2, 9, model.config.width)
        assert torch.equal(model.projection(hidden).logits(), model(ids))
        assert torch.equal(model.logits(hidden), model(ids))


@torch.no_grad()
def test_bf16_autocast_is_near_fp32() -> None:
    """Its error beside that of `transformers` is in tests/families/test_llama.py."""
    model = small_model(VARIANTS["llama"])
    ids, segments = random_ids(model.config, 2, 50), segments_of((20, 30)).expand(2, -1)
    expected = model(ids, segments=segments)
    assert (under_autocast(model, ids, segments).float() - expected).norm() / expected.norm() < 0.03


def test_too_long_for_learned_positions_is_said() -> None:
    model = small_model(VARIANTS["layernorm, learned, plain gelu, biases"].changed(max_positions=8))
    with pytest.raises(ValueError, match="9 positions, but this model has learned 8"):
        model(random_ids(model.config, 1, 9))


# ---------------------------------------------------------------------------------------------------- initial weights


def fresh(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, config, seed)
    return dict(model.named_parameters())


def test_initial_weights_have_the_stated_spread() -> None:
    config = ModelConfig(vocab_size=500, width=128, layers=8, heads=4, bias="all", tied_embeddings=False, init_std=0.05)
    for name, parameter in fresh(config).items():
        if name.endswith(".bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            expected = 0.05 / (16**0.5 if residual else 1)
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < expected / 20


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    first, other = fresh(BASE), fresh(BASE, seed=1)
    deeper = fresh(BASE.changed(layers=2, tied_embeddings=False))
    assert all(torch.equal(parameter, deeper[name]) for name, parameter in first.items())
    matrices = [name for name, parameter in first.items() if parameter.ndim == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    assert len({tuple(first[name].flatten()[:4].tolist()) for name in matrices}) == len(matrices)
    half = build_model(BASE).bfloat16()
    initialise(half, BASE, 0)
    assert all(torch.equal(p, first[name].bfloat16()) for name, p in half.named_parameters())


def test_a_fresh_model_is_as_good_as_guessing() -> None:
    config = ModelConfig(vocab_size=300, width=64, layers=4, heads=4)
    model = build_model(config)
    initialise(model, config, 0)
    ids = random_ids(config, 4, 64)
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert loss == pytest.approx(torch.tensor(300.0).log().item(), abs=0.05)
