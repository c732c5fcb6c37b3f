"""Products with packed matrices, the way chosen by kind, type and number of rows.

A few rows (decoding) go to the compiled kernels, which read each code once and never unpack. Many rows are worth
unpacking for, a piece of the matrix at a time, since a product with so many costs more than that. `int8_dynamic`
rounds each row of activations to int8, absmax / 127 per step, and multiplies whole numbers: also for one row, where it
is fastest too, so that a row's result never depends on how many came with it.

Invariant its test checks: each way equals the product with the unpacked matrix in fp64 (int8_dynamic: with the rounded
activations).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trivium import kernels
from trivium.quantization.packing import Packed, decode, full_scales

UNPACKED_AT_A_TIME = 1 << 20
"""Numbers of a matrix unpacked at a time: a few MB, which stay in the processor's cache."""
KERNEL_KINDS = ("int8", "int4", "int4_asymmetric")
FEW_ROWS = 16
"""Up to so many rows the kernels are tried; without them torch's own product of bf16 rows with int8."""


def product(x_MI: Tensor, matrix: Packed, bias_O: Tensor | None = None) -> Tensor:
    """x @ W.T + bias, (M, I) -> (M, O), in the type of x."""
    if matrix.kind == "int8_dynamic":
        return _int8_product(x_MI, matrix, bias_O)
    if len(x_MI) <= FEW_ROWS and x_MI.device.type == "cpu":
        if matrix.kind in KERNEL_KINDS and kernels.available():
            return kernels.linear(x_MI, matrix.kind, matrix.packed, matrix.scales, matrix.offsets, bias_O)
        if matrix.kind == "int8" and x_MI.dtype == torch.bfloat16:
            return _finished(torch._weight_int8pack_mm(x_MI, matrix.packed, _ones(matrix)), matrix.scales, bias_O)
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
    if matrix.kind == "int8" and x_MI.dtype != torch.float16:  # whose sums of codes could be out of range
        return _finished(F.linear(x_MI, matrix.packed.to(x_MI.dtype)), matrix.scales, bias_O)
    return F.linear(x_MI, decode(matrix).to(x_MI.dtype), bias_O)


def _int8_product(x_MI: Tensor, matrix: Packed, bias_O: Tensor | None) -> Tensor:
    """With activations rounded to int8, each row by its own scale; sums of whole numbers are exact."""
    codes_MI, steps_M1 = rounded_rows(x_MI)
    sums_MO = _whole_numbers(codes_MI, matrix.packed)
    y_MO = sums_MO.float().mul_(steps_M1).mul_(full_scales(matrix))
    return (y_MO if bias_O is None else y_MO.add_(bias_O.float())).to(x_MI.dtype)


def rounded_rows(x_MI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (M, I) of activations, and what one code of a row stands for, (M, 1) fp32."""
    x_MI = x_MI.float()
    steps_M1 = x_MI.abs().amax(1, keepdim=True) / 127
    return (x_MI / steps_M1.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8), steps_M1


def _whole_numbers(left_MI: Tensor, right_OI: Tensor) -> Tensor:
    """int32 products of int8 matrices, (M, O)."""
    rows, outputs = len(left_MI), len(right_OI)
    if left_MI.device.type == "cpu":
        return torch._int_mm(left_MI, right_OI.T)
    # On a GPU sizes must be multiples of 8, and of more than 16 rows.
    padded = F.pad(left_MI, (0, -left_MI.shape[1] % 8, 0, max(-rows % 8, 24 - rows)))
    matrix = F.pad(right_OI, (0, -right_OI.shape[1] % 8, 0, -outputs % 8))
    return torch._int_mm(padded, matrix.T)[:rows, :outputs]


def _finished(sums_MO: Tensor, scales_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Sums of codes times their scales, plus the bias."""
    scales_O = scales_O.to(sums_MO.dtype)
    return sums_MO.mul_(scales_O) if bias_O is None else torch.addcmul(bias_O.to(sums_MO.dtype), sums_MO, scales_O)


def _ones(matrix: Packed) -> Tensor:
    return torch.ones(matrix.shape[0], dtype=torch.bfloat16, device=matrix.packed.device)
