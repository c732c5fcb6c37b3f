"""Norms, the MLP, and the one contract for linear layers.

**The linear contract.** Every matrix of a block is a plain `torch.nn.Linear` in a slot of its own (query, key, value,
output, gate, up, down). What wraps or replaces one (LoRA, int8, int4) must keep `in_features`, `out_features` and
`forward(x: (..., in)) -> (..., out)`; nothing here reads `.weight` or `.bias` of a linear layer, with one exception:
`Decoder.head_weight` reads the `.weight` of an untied head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.config import Activation, ModelConfig

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich, 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias (Ba et al., 2016)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def build_norm(config: ModelConfig) -> nn.Module:
    """The norm a config asks for."""
    return {"rmsnorm": RMSNorm, "layernorm": LayerNorm}[config.norm](config.width, config.norm_eps)


class MLP(nn.Module):
    """The position-wise network: plain (Vaswani et al., 2017) or gated (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, F_, bias = config.width, config.mlp_width, config.mlp_bias
        self.gate = nn.Linear(D, F_, bias=bias) if config.mlp == "gated" else None
        self.up = nn.Linear(D, F_, bias=bias)
        self.down = nn.Linear(F_, D, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            inner_BTF = self.activation(self.up(x_BTD))
        else:
            inner_BTF = self.activation(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(inner_BTF)  # type: ignore[no-any-return]
