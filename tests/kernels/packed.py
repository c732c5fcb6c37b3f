"""Matrices of every kind the kernels know, and what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trivium.kernels import available

KINDS = ("int8", "int4", "int4_asymmetric", "fp32", "bf16", "fp16", "int8_dynamic")
LEVELS = ("vnni", "avx512", "avx2", "plain")
DENSE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

needs_kernels = pytest.mark.skipif(not available(), reason="the kernels were not built here: no compiler that can")


def matrix(kind: str, outputs: int, inputs: int, group: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """Random codes and scales, as `linear` takes them, and the matrix (O, I) they stand for, in fp64."""
    numbers = torch.Generator().manual_seed(outputs * 7 + inputs)
    if kind in DENSE:
        weight = torch.randn(outputs, inputs, generator=numbers).to(DENSE[kind])
        return {"packed": weight}, weight.double()
    if kind.startswith("int8"):
        codes = torch.randint(-127, 128, (outputs, inputs), generator=numbers, dtype=torch.int8)
        scales = torch.rand(outputs, generator=numbers) + 0.1
        return {"packed": codes, "scales": scales}, codes.double() * scales.double()[:, None]
    codes = torch.randint(0, 16, (outputs, inputs), generator=numbers, dtype=torch.uint8)
    halves = codes.view(outputs, inputs // 32, 2, 16)
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
    scales = (torch.rand(outputs, inputs // group, generator=numbers) + 0.1).half()
    scales[0, 0] = 3e-6  # a denormal of fp16
    wide = scales.double().repeat_interleave(group, 1)
    if kind == "int4":
        return {"packed": packed, "scales": scales}, (codes.double() - 8) * wide
    offsets = torch.randn(outputs, inputs // group, generator=numbers).half()
    weight = codes.double() * wide + offsets.double().repeat_interleave(group, 1)
    return {"packed": packed, "scales": scales, "offsets": offsets}, weight


def error(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """The largest distance from the fp64 product, relative to the magnitudes that were added up."""
    exact = x.double() @ weight.T + bias.double()
    magnitude = x.double().abs() @ weight.T.abs() + bias.abs()
    return float(((y.double() - exact).abs() / magnitude).max())
