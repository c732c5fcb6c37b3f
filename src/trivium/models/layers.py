"""Norms, the MLP, and the one contract for linear layers.

**The linear contract.** Every matrix of a block is a plain `torch.nn.Linear` in a slot of its own (query, key, value,
output, gate, up, down). What wraps or replaces one (LoRA, int8, int4) must keep `in_features`, `out_features` and
`forward(x: (..., in)) -> (..., out)`; nothing here reads `.weight` or `.bias` of a linear layer, with one exception:
`Head.projection` reads those of an untied language-model head. **The table contract**: what replaces the `Embedding` of
tokens keeps `num_embeddings`, `embedding_dim`, `forward(ids)`, `scores(hidden)` and `weight`. Either `weight` may be a
property that makes the matrix when it is asked for, so what is asked often must not go through it.

Two backward passes are written out, because autograd's cost too much on a CPU: RMSNorm's (five times slower there than
LayerNorm's) and that of the gated product (which would keep a third tensor of width F). Their tests compare both with
autograd in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.config import Activation, ModelConfig

aten = torch.ops.aten


class ActivationPair(NamedTuple):
    """A nonlinearity and its gradient."""

    value: Callable[[Tensor], Tensor]
    """x -> activation(x)."""
    times_slope_: Callable[[Tensor, Tensor], Tensor]
    """(gradient, x) -> gradient * activation'(x), written over `gradient`."""


ACTIVATIONS: dict[Activation, ActivationPair] = {
    "silu": ActivationPair(F.silu, lambda g, x: aten.silu_backward(g, x, grad_input=g)),
    "gelu": ActivationPair(F.gelu, lambda g, x: aten.gelu_backward(g, x, grad_input=g)),
    "gelu_tanh": ActivationPair(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda g, x: aten.gelu_backward(g, x, approximate="tanh", grad_input=g),
    ),
    "relu": ActivationPair(F.relu, lambda g, x: aten.threshold_backward(g, x, 0, grad_input=g)),
}


class _RMSNormOnCPU(torch.autograd.Function):
    """RMSNorm whose backward pass borrows LayerNorm's kernel.

    With y = n w, n = x r, r = 1/rms(x), the gradient of x is r (g w - n mean(g w n)). LayerNorm's kernel, told that the
    mean was 0 and the inverse deviation r, computes r (g w - mean(g w) - n mean(g w n)), so r mean(g w) is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        ctx.save_for_backward(x, weight, mean_square.add_(eps).rsqrt_())
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        (g,) = gradients
        g = g.contiguous()
        g_x, g_weight, _ = aten.native_layer_norm_backward(
            g, x, weight.shape, torch.zeros_like(inverse_rms), inverse_rms, weight, None, [True, True, False]
        )
        mean = (g @ (weight / x.shape[-1]))[..., None]
        return g_x.addcmul_(mean, inverse_rms), g_weight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich, 2019), computed in fp32 or better."""

    def __init__(self, width: int, eps: float, *, around_one: bool = False) -> None:
        """`around_one`: the weight is kept as its distance from 1 (Gemma), so that weight decay pulls it there."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if around_one else torch.ones(width))
        self.eps, self.around_one = eps, around_one

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.around_one or (torch.is_grad_enabled() and x.device.type == "cpu"):
            wide = torch.promote_types(x.dtype, torch.float32)
            weight = self.weight.to(wide) + 1 if self.around_one else self.weight.to(wide)
            if torch.is_grad_enabled() and x.device.type == "cpu":
                normed: Tensor = _RMSNormOnCPU.apply(x.to(wide), weight, self.eps)  # type: ignore[no-untyped-call]
            else:
                normed = F.rms_norm(x.to(wide), weight.shape, weight, self.eps)
            return normed.to(x.dtype)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias (Ba et al., 2016)."""

    def __init__(self, width: int, eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Embedding(nn.Embedding):
    """The table of tokens: ids to vectors and, where the head is tied to it, vectors to the score of each token."""

    def scores(self, hidden: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., V): hidden @ weight.T + bias."""
        return F.linear(hidden, self.weight, bias_V)


def build_norm(config: ModelConfig, width: int = 0) -> nn.Module:
    """The norm a config asks for, of the model's width or another."""
    width = width or config.width
    if config.norm in ("rmsnorm", "rmsnorm_around_one"):
        return RMSNorm(width, config.norm_eps, around_one=config.norm == "rmsnorm_around_one")
    return LayerNorm(width, config.norm_eps, bias=config.norm == "layernorm")


class _GatedProduct(torch.autograd.Function):
    """activation(gate) * up, keeping only its two inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: ActivationPair) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation.value(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        (g,) = gradients
        return (
            ctx.activation.times_slope_(g * up, gate),
            ctx.activation.value(gate).mul_(g),
            None,
        )


class MLP(nn.Module):
    """The position-wise network: plain (Vaswani et al., 2017) or gated (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, bias = config.width, config.mlp_width, config.mlp_bias
        self.gate = nn.Linear(width, inner, bias=bias) if config.mlp == "gated" else None
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.gate is None:
            inner_BTF = self.activation.value(self.up(x_BTD))
        elif torch.is_grad_enabled():
            inner_BTF = _GatedProduct.apply(self.gate(x_BTD), self.up(x_BTD), self.activation)  # type: ignore[no-untyped-call]
        else:
            inner_BTF = self.activation.value(self.gate(x_BTD)).mul_(self.up(x_BTD))
        return self.down(inner_BTF)  # type: ignore[no-any-return]
