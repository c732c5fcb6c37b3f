"""y = x W^T + b for rows x and a matrix W stored in few bits, on the CPU.

Only the weights are quantized: each is widened to fp32 as `code * scale` (+ offset) and meets fp32 activations, so the
result is that of the dequantized matrix to rounding (tested: 1e-6, relative to the sum of magnitudes). Weights are read
once, whatever the number of rows; the order of additions within a result depends neither on the other rows nor on the
number of threads (tested: bit for bit). The exception is `int8_dynamic`: x is rounded to int8 as well, and there may be
any number of rows where the processor multiplies bytes (`cpp/whole_numbers.h`, level `vnni`).

Layouts, W being (O, I):
- `fp32`, `bf16`, `fp16`: (O, I).
- `int8`, `int8_dynamic`: int8 (O, I), scales fp32 (O,).
- `int4`, `int4_asymmetric`: uint8 (O, I / 2); byte j of each 16 holds input j of 32 in its low half and j + 16 in its
  high half. Scales (and offsets) fp16 (O, I / G): (code - 8) * scale, or code * scale + offset.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trivium.kernels.native import native
from trivium.kernels.structures import MATRIX_KINDS, Matrix

DENSE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KIND_DTYPES = {"int8": torch.int8, "int8_dynamic": torch.int8, "int4": torch.uint8, "int4_asymmetric": torch.uint8}
GROUPS = (32, 64, 128)


def linear(
    x: Tensor,
    kind: str,
    packed: Tensor,
    scales: Tensor | None = None,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """(..., I) -> (..., O) in the type of `x` (fp32, bf16, fp16); made for up to some 16 rows, of int8_dynamic for any.

    Of int4, I may be less than what is packed: the rest counts as zeros. Needs `available()`; ValueError for shapes,
    types and places that do not fit.
    """
    library = native()
    if library is None:
        raise RuntimeError("the kernels were not built here: ask kernels.available() first")
    matrix, kept = matrix_of(kind, packed, scales, offsets, bias)
    if x.dtype not in DENSE or x.device.type != "cpu":
        raise ValueError(f"x must be fp32, bf16 or fp16 on the CPU, not {x.dtype} on {x.device}")
    missing = matrix.inputs - x.shape[-1]
    if missing < 0 or (missing and kind not in ("int4", "int4_asymmetric")):
        raise ValueError(f"x has rows of {x.shape[-1]}, and the matrix takes {matrix.inputs}")
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = F.pad(rows, (0, missing)) if missing else rows.contiguous()
    out = torch.empty(rows.shape[0], matrix.outputs)
    threads = library.threads(matrix.inputs * matrix.outputs)
    library.library.trivium_linear(
        library.level, matrix, rows.data_ptr(), matrix.inputs, rows.shape[0], out.data_ptr(), threads
    )
    del kept
    return out.to(x.dtype).view(*x.shape[:-1], matrix.outputs)


def matrix_of(
    kind: str, packed: Tensor, scales: Tensor | None, offsets: Tensor | None, bias: Tensor | None
) -> tuple[Matrix, list[Tensor]]:
    """The structure of a linear layer, and the tensors its addresses point into. ValueError where these do not fit."""
    if kind not in MATRIX_KINDS:
        raise ValueError(f"there is no kernel for {kind!r}, only for {', '.join(MATRIX_KINDS)}")
    per_element = 2 if kind.startswith("int4") else 1
    wanted = KIND_DTYPES[kind] if kind in KIND_DTYPES else {name: dtype for dtype, name in DENSE.items()}[kind]
    _check("packed", packed, wanted)
    if packed.ndim != 2:
        raise ValueError(f"packed must be a matrix, not of shape {tuple(packed.shape)}")
    outputs, inputs = packed.shape[0], packed.shape[1] * per_element
    group = 0
    if kind in ("int8", "int8_dynamic"):
        _check("scales", scales, torch.float32, (outputs,))
    elif kind in KIND_DTYPES:
        group = inputs // scales.shape[1] if scales is not None and scales.ndim == 2 and scales.shape[1] else 0
        if group not in GROUPS or inputs % group:
            raise ValueError(f"int4 needs scales for groups of {', '.join(map(str, GROUPS))} of {inputs} inputs")
        _check("scales", scales, torch.float16, (outputs, inputs // group))
        if kind == "int4_asymmetric":
            _check("offsets", offsets, torch.float16, (outputs, inputs // group))
    kept = [packed]
    matrix = Matrix(MATRIX_KINDS[kind], outputs, inputs, group, packed.data_ptr())
    if kind in KIND_DTYPES:
        assert scales is not None
        matrix.scales = scales.data_ptr()
        kept.append(scales)
    if kind == "int4_asymmetric":
        assert offsets is not None
        matrix.offsets = offsets.data_ptr()
        kept.append(offsets)
    if bias is not None:
        wide = bias.detach().to(device=packed.device, dtype=torch.float32).contiguous()
        _check("bias", wide, torch.float32, (outputs,))
        matrix.bias = wide.data_ptr()
        kept.append(wide)
    return matrix, kept


def _check(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> None:
    """What a kernel cannot check, since it is given addresses."""
    if tensor is None:
        raise ValueError(f"{name} is missing")
    if tensor.device.type != "cpu" or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous {dtype} on the CPU, not {tensor.dtype} on {tensor.device}")
    if shape is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, not {tuple(tensor.shape)}")
