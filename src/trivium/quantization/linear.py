"""Modules with a packed matrix: a linear layer and a table of tokens that keep the contracts of `models/layers.py`.

Codes and scales are buffers of fixed types: `to(torch.bfloat16)` changes the type they compute in and the bias, not
them. A gradient flows to the input (dx = g W, unpacked on the way), none to the codes, so that adapters can be trained
on top. Invariants its tests check: forward equals the product with `weight`; the gradient is autograd's of the unpacked
layer; copies, moves and state_dict keep every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trivium.quantization.packing import Packed, decode, unpack
from trivium.quantization.products import product, transposed_product
from trivium.quantization.schemes import Kind


class _Product(torch.autograd.Function):
    """x @ W.T with the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, module: PackedMatrix) -> Tensor:
        ctx.module = module
        return product(x_MI, module.matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g_MO,) = gradients
        return transposed_product(g_MO, ctx.module.matrix), None


class PackedMatrix(nn.Module):
    """What the two modules have in common: the codes of a matrix (O, I)."""

    packed: Tensor
    scales: Tensor
    offsets: Tensor | None
    steps: Tensor | None
    typed: Tensor

    def __init__(self, matrix: Packed, dtype: torch.dtype) -> None:
        """`dtype` is the type it computes in when asked for its `weight`."""
        super().__init__()
        self.kind: Kind = matrix.kind
        self.register_buffer("packed", matrix.packed)
        self.register_buffer("scales", matrix.scales)
        self.register_buffer("offsets", matrix.offsets)
        self.register_buffer("steps", matrix.steps)
        # Empty: only its type counts, which `to` changes; never on the meta device, which it could not leave.
        self.register_buffer("typed", torch.empty(0, dtype=dtype, device="cpu"), persistent=False)

    @property
    def matrix(self) -> Packed:
        """The codes and what they stand for."""
        return Packed(self.kind, self.packed, self.scales, self.offsets, self.steps)

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I), unpacked anew each time."""
        return unpack(self.matrix, self.typed.dtype)

    def multiply(self, x: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O): x @ W.T + bias; under autocast in its type."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        x_MI = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():
            y_MO: Tensor = _Product.apply(x_MI, self)  # type: ignore[no-untyped-call]
            y_MO = y_MO if bias_O is None else y_MO + bias_O.to(y_MO.dtype)
        else:
            y_MO = product(x_MI, self.matrix, None if bias_O is None else bias_O.to(x.dtype))
        return y_MO.view(*x.shape[:-1], y_MO.shape[-1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedMatrix:
        """Move, but leave the types of codes and scales as they are."""
        floats = {name: tensor for name, tensor in self.matrix.tensors().items() if tensor.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in floats.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Sizes and kind."""
        outputs, inputs = self.matrix.shape
        group = f", group_size={self.matrix.group_size}" if self.matrix.group_size else ""
        return f"{inputs}, {outputs}, kind={self.kind}{group}, bytes={self.matrix.num_bytes:,}"


class PackedLinear(PackedMatrix):
    """y = x @ W.T + bias."""

    bias: nn.Parameter | None

    def __init__(self, matrix: Packed, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(matrix, dtype)
        self.out_features, self.in_features = matrix.shape
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.multiply(x, self.bias)


class PackedEmbedding(PackedMatrix):
    """A table of tokens: ids to vectors and, where the head is tied to it, vectors to the score of each token."""

    def __init__(self, matrix: Packed, dtype: torch.dtype) -> None:
        super().__init__(matrix, dtype)
        self.num_embeddings, self.embedding_dim = matrix.shape

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        rows = decode(self.matrix.rows(ids.reshape(-1))).to(self.typed.dtype)
        return rows.view(*ids.shape, self.embedding_dim)

    def scores(self, hidden: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., V): hidden @ weight.T + bias."""
        return self.multiply(hidden, bias_V)
