"""Products with packed matrices, the way chosen by kind, type and number of rows.

A few rows (decoding) go to the compiled kernels, which read each code once and never unpack. Many rows are worth
unpacking for, a piece of the matrix at a time, since a product with so many costs more than that. `int8_dynamic`
rounds activations to int8, in groups of 64 with absmax / 127 per step (one step for a whole row would be spoilt by its
largest number), and the kernels multiply whole numbers; without them the rounded activations are multiplied in fp32.

Invariant its test checks: each way equals the product with the unpacked matrix in fp64 (int8_dynamic: with the rounded
activations).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trivium import kernels
from trivium.kernels.native import native
from trivium.quantization.packing import Packed, decode

UNPACKED_AT_A_TIME = 1 << 20
"""Numbers of a matrix unpacked at a time: a few MB, which stay in the processor's cache."""
KERNEL_KINDS = ("int8", "int8_dynamic", "int4", "int4_asymmetric")
ROUNDED_TOGETHER = 64
"""Activations of int8_dynamic that share a step (in the kernels: BYTES)."""
SMALLEST = 1e-30
"""A group without larger activations counts as zeros."""
FEW_ROWS = 16
"""Up to so many rows go to the kernels; without them rows of bf16 to torch's own product with int8."""


def product(x_MI: Tensor, matrix: Packed, bias_O: Tensor | None = None) -> Tensor:
    """x @ W.T + bias, (M, I) -> (M, O), in the type of x."""
    if _kernels_suit(x_MI, matrix):
        return kernels.linear(x_MI, matrix.kind, matrix.packed, matrix.scales, matrix.offsets, bias_O)
    if matrix.kind == "int8_dynamic":
        return _in_pieces(rounded(x_MI), matrix, bias_O).to(x_MI.dtype)
    few = len(x_MI) <= FEW_ROWS and x_MI.device.type == "cpu"
    if few and matrix.kind == "int8" and x_MI.dtype == torch.bfloat16:
        return _finished(torch._weight_int8pack_mm(x_MI, matrix.packed, _ones(matrix)), matrix.scales, bias_O)
    return _in_pieces(x_MI, matrix, bias_O)


def _kernels_suit(x_MI: Tensor, matrix: Packed) -> bool:
    """Whether the kernels know the matrix and are the faster way."""
    library = native()
    if library is None or matrix.kind not in KERNEL_KINDS or x_MI.device.type != "cpu" or x_MI.dtype == torch.float64:
        return False
    return len(x_MI) <= FEW_ROWS or (matrix.kind == "int8_dynamic" and library.multiplies_bytes)


def _in_pieces(x_MI: Tensor, matrix: Packed, bias_O: Tensor | None) -> Tensor:
    """Through the unpacked matrix, some rows of it at a time."""
    outputs, inputs = matrix.shape
    step = max(1, UNPACKED_AT_A_TIME // inputs)
    if outputs <= step:
        return _unpacked_product(x_MI, matrix, bias_O)
    y_MO = x_MI.new_empty(len(x_MI), outputs)
    expanded = matrix.rows(slice(None))
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        bias = None if bias_O is None else bias_O[rows]
        y_MO[:, rows] = _unpacked_product(x_MI, expanded.rows(rows), bias)
    return y_MO


def transposed_product(g_MO: Tensor, matrix: Packed) -> Tensor:
    """g @ W, (M, O) -> (M, I), in the type of g: how a gradient reaches the input."""
    outputs, inputs = matrix.shape
    step = max(1, UNPACKED_AT_A_TIME // inputs)
    expanded = matrix.rows(slice(None))
    result: Tensor | None = None
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        part = g_MO[:, rows] @ decode(expanded.rows(rows)).to(g_MO.dtype)
        result = part if result is None else result.add_(part)
    return g_MO.new_zeros(len(g_MO), inputs) if result is None else result


def _unpacked_product(x_MI: Tensor, matrix: Packed, bias_O: Tensor | None) -> Tensor:
    """Through the matrix in the type of x."""
    if matrix.kind.startswith("int8") and x_MI.dtype != torch.float16:  # whose sums of codes could be out of range
        return _finished(F.linear(x_MI, matrix.packed.to(x_MI.dtype)), matrix.scales, bias_O)
    return F.linear(x_MI, decode(matrix).to(x_MI.dtype), bias_O)


def rounded(x_MI: Tensor) -> Tensor:
    """Activations as their int8 codes stand for them, fp32; in groups of ROUNDED_TOGETHER, each with its own step."""
    rows, inputs = x_MI.shape
    x_MGI = F.pad(x_MI.float(), (0, -inputs % ROUNDED_TOGETHER)).view(rows, -1, ROUNDED_TOGETHER)
    most_MG1 = x_MGI.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST)
    codes_MGI = (x_MGI * (127 / most_MG1)).round_()
    return codes_MGI.mul_(most_MG1 / 127).flatten(1)[:, :inputs]


def _finished(sums_MO: Tensor, scales_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Sums of codes times their scales, plus the bias."""
    scales_O = scales_O.to(sums_MO.dtype)
    return sums_MO.mul_(scales_O) if bias_O is None else torch.addcmul(bias_O.to(sums_MO.dtype), sums_MO, scales_O)


def _ones(matrix: Packed) -> Tensor:
    return torch.ones(matrix.shape[0], dtype=torch.bfloat16, device=matrix.packed.device)
