"""Norms and MLP, values and gradients, against plain formulas left to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from models.samples import BASE
from trivium.models.config import Activation
from trivium.models.layers import ACTIVATIONS, MLP, LayerNorm, RMSNorm, _GatedProduct, _RMSNormOnCPU

FORMULAS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def gradient_error(function: Any) -> float:
    """Largest difference of an RMSNorm's value and gradients to the plain formula, in fp64."""
    x, weight, g = draw(3, 5, 16), draw(16, seed=1), draw(3, 5, 16, seed=2).detach()
    found = function.apply(x, weight, 1e-5)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
    pairs = zip(
        (found, *torch.autograd.grad(found, (x, weight), g)),
        (plain, *torch.autograd.grad(plain, (x, weight), g)),
        strict=True,
    )
    return max((a - b).abs().max().item() for a, b in pairs)


def test_rmsnorm_has_the_gradients_of_its_formula() -> None:
    assert gradient_error(_RMSNormOnCPU) < 1e-12


def test_broken_control_the_bare_kernel_of_layernorm_is_seen() -> None:
    class WithoutCorrection(_RMSNormOnCPU):
        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            x, weight, inverse_rms = ctx.saved_tensors
            zeros = torch.zeros_like(inverse_rms)
            g_x, g_weight, _ = torch.ops.aten.native_layer_norm_backward(
                gradients[0], x, weight.shape, zeros, inverse_rms, weight, None, [True, True, False]
            )
            return g_x, g_weight, None

    assert gradient_error(WithoutCorrection) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_is_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    norm = RMSNorm(32, 1e-5).to(dtype)
    x = draw(2, 7, 32).detach().to(dtype)
    with torch.no_grad():
        expected = norm(x)
    assert torch.equal(norm(x.requires_grad_()), expected)
    assert expected.dtype == dtype


def test_norms_survive_large_values() -> None:
    x = torch.full((1, 64), 6e4, dtype=torch.bfloat16)
    for norm in (RMSNorm(64, 1e-5).bfloat16(), LayerNorm(64, 1e-5).bfloat16()):
        assert norm(x).isfinite().all()


@pytest.mark.parametrize("activation", list(FORMULAS))
@pytest.mark.parametrize("mlp", ["gated", "plain"])
def test_mlp_is_its_formula(activation: Activation, mlp: Any) -> None:
    config = BASE.changed(activation=activation, mlp=mlp, bias="mlp")
    module = MLP(config).double()
    x = draw(2, 3, config.width)
    up = F.linear(x, module.up.weight, module.up.bias)
    if module.gate is not None:
        inner = FORMULAS[activation](F.linear(x, module.gate.weight, module.gate.bias)) * up
    else:
        inner = FORMULAS[activation](up)
    expected = F.linear(inner, module.down.weight, module.down.bias)
    parameters = (x, *module.parameters())
    found = module(x)
    with torch.no_grad():
        assert torch.equal(module(x), found)
    g = draw(2, 3, config.width, seed=3).detach()
    for a, b in zip(
        (found, *torch.autograd.grad(found, parameters, g)),
        (expected, *torch.autograd.grad(expected, parameters, g)),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_product_passes_finite_differences(activation: Activation) -> None:
    pair = ACTIVATIONS[activation]
    assert gradcheck(lambda a, b: _GatedProduct.apply(a, b, pair), (draw(4, 3), draw(4, 3, seed=1)))
