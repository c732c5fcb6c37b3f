"""AdamW against the paper's update in fp64, and its state across a save."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.small import fails, same_bits, settings, small_model
from trivium.errors import UserError
from trivium.training.optimizer import AdamW, trainable_parameters
from trivium.training.settings import TrainingSettings

CHOSEN = TrainingSettings(steps=9, weight_decay=0.3, beta1=0.8, beta2=0.9, epsilon=1e-3)


def gradients(parameters: dict[str, nn.Parameter], step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in parameters.items()
    }


def advance(optimizer: AdamW, steps: range) -> None:
    for step in steps:
        for name, gradient in gradients(optimizer.parameters, step).items():
            optimizer.parameters[name].grad = gradient
        optimizer.step(0.01 * (step + 1))


def assert_follows_the_paper(decays_vectors: bool = False) -> None:
    parameters = trainable_parameters(small_model(dtype=torch.float64, norm="layernorm"))
    expected = {name: p.detach().clone() for name, p in parameters.items()}
    mean = {name: torch.zeros_like(p) for name, p in expected.items()}
    square = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(5):
        rate = 0.01 * (step + 1)
        for name, g in gradients(parameters, step).items():
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.9 * square[name] + 0.1 * g * g
            root = (square[name] / (1 - 0.9 ** (step + 1))).sqrt() + 1e-3
            decay = 0.3 if expected[name].ndim >= 2 or decays_vectors else 0.0
            update = mean[name] / (1 - 0.8 ** (step + 1)) / root + decay * expected[name]
            expected[name] -= rate * update
    optimizer = AdamW(parameters, CHOSEN)
    advance(optimizer, range(5))
    assert optimizer.updates == 5
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, expected[name], rtol=1e-12, atol=1e-14), name


def test_update_of_the_paper_with_decay_of_matrices_only() -> None:
    assert_follows_the_paper()
    assert fails(lambda: assert_follows_the_paper(decays_vectors=True))


def test_state_comes_back_bit_for_bit() -> None:
    first = AdamW(trainable_parameters(small_model()), CHOSEN)
    advance(first, range(3))
    second = AdamW(trainable_parameters(small_model()), CHOSEN)
    for name, parameter in first.parameters.items():
        second.parameters[name].data.copy_(parameter.data)
    second.load_state({name: t.clone() for name, t in first.state_tensors().items()}, first.updates)
    for optimizer in (first, second):
        advance(optimizer, range(3, 6))
    assert same_bits(first.state_tensors(), second.state_tensors())
    assert same_bits(dict(first.parameters), dict(second.parameters))
    # Control: with the count of updates forgotten the continuation differs.
    third = AdamW(trainable_parameters(small_model()), CHOSEN)
    third.load_state(first.state_tensors(), 0)
    assert third.updates != first.updates


def test_names_say_what_a_tensor_is() -> None:
    optimizer = AdamW(trainable_parameters(small_model()), CHOSEN)
    names = set(optimizer.state_tensors())
    assert {f"mean/{name}" for name in optimizer.parameters} < names
    assert {f"square/{name}" for name in optimizer.parameters} < names


def test_foreign_state_is_refused_by_name() -> None:
    optimizer = AdamW(trainable_parameters(small_model()), CHOSEN)
    state = optimizer.state_tensors()
    name = next(iter(state))
    with pytest.raises(UserError, match=f"the checkpoint lacks {name}"):
        optimizer.load_state({key: t for key, t in state.items() if key != name}, 1)
    with pytest.raises(UserError, match="the model lacks extra"):
        optimizer.load_state({**state, "extra": torch.zeros(1)}, 1)
    with pytest.raises(UserError, match=f"{name} is torch.float64"):
        optimizer.load_state({**state, name: state[name].double()}, 1)
    assert optimizer.updates == 0


def test_sixteen_bit_weights_are_trained_in_fp32() -> None:
    model = small_model(dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in trainable_parameters(model).values())


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        trainable_parameters(small_model().requires_grad_(False))


def test_settings_reach_the_update() -> None:
    def moved(**changes: float) -> float:
        optimizer = AdamW(trainable_parameters(small_model(dtype=torch.float64)), settings(**changes))
        before = {name: p.detach().clone() for name, p in optimizer.parameters.items()}
        advance(optimizer, range(2))
        return math.fsum(float((p.detach() - before[name]).abs().sum()) for name, p in optimizer.parameters.items())

    plain = moved()
    for change in ({"weight_decay": 0.9}, {"beta1": 0.1}, {"beta2": 0.3}, {"epsilon": 0.1}):
        assert moved(**change) != plain, change
