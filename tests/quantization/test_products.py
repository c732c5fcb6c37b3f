"""Every way to multiply with a packed matrix gives the product with the unpacked one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantization.blocks import LAYOUTS
from trivium import kernels
from trivium.quantization import products
from trivium.quantization.packing import Packed, pack, unpack
from trivium.quantization.products import ROUNDED_TOGETHER, product, rounded, transposed_product
from trivium.quantization.schemes import Layout

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def matrix(kind: str, outputs: int = 48, inputs: int = 192) -> Packed:
    how = LAYOUTS.get(kind, Layout("int8_dynamic", 0, False))
    return pack(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)), how)


def rows(count: int, inputs: int = 192, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(2)).to(dtype)


def error(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """The largest difference from the product in fp64, relative to the sum of magnitudes."""
    exact = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    return float(((found.double() - exact).abs() / size).max())


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 16, 40])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_product(kind: str, count: int, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled and not kernels.available():
        pytest.skip("the kernels were not built on this machine")
    if not compiled:
        monkeypatch.setenv("TRIVIUM_KERNELS", "off")
    packed, x = matrix(kind), rows(count, dtype=dtype)
    bias = torch.randn(48, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = product(x, packed, bias)
    assert found.dtype == dtype and found.shape == (count, 48)
    assert error(found, x, unpack(packed), bias) < TOLERANCES[dtype]
    assert error(product(x, packed), x, unpack(packed), torch.zeros(48)) < TOLERANCES[dtype]


def test_codes_taken_in_another_order_are_seen() -> None:
    """The broken control: the halves of a byte exchanged."""
    packed, x = matrix("int4"), rows(3)
    wrong = Packed("int4", (packed.packed >> 4) | (packed.packed << 4), packed.scales)
    assert error(product(x, wrong), x, unpack(packed), torch.zeros(48)) > 1e-2


@pytest.mark.parametrize("kind", [*LAYOUTS, "int8_dynamic"])
def test_large_matrices_are_unpacked_in_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x, g = matrix(kind), rows(20), rows(20, 48)
    whole, back = product(x, packed), transposed_product(g, packed)
    monkeypatch.setattr(products, "UNPACKED_AT_A_TIME", 192 * 7)
    assert torch.allclose(product(x, packed), whole, rtol=1e-5, atol=1e-4)
    assert torch.allclose(transposed_product(g, packed), back, rtol=1e-5, atol=1e-4)
    assert torch.allclose(back, g @ unpack(packed), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("count", [1, 5, 33])
def test_dynamic_products_are_those_of_rounded_rows(
    count: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and not kernels.available():
        pytest.skip("the kernels were not built on this machine")
    if not compiled:
        monkeypatch.setenv("TRIVIUM_KERNELS", "off")
    packed, x = matrix("int8_dynamic"), rows(count)
    x[0] = 0
    met = rounded(x)
    steps = x.view(count, -1, ROUNDED_TOGETHER).abs().amax(-1, keepdim=True) / 127
    half_steps = (steps / 2 * (1 + 1e-5)).expand(-1, -1, ROUNDED_TOGETHER).flatten(1)
    assert bool(((met - x).abs() <= half_steps).all())
    bias = torch.ones(48)  # so that the zeros have a size to be compared with
    assert error(product(x, packed, bias), met, unpack(packed), bias) < 1e-6
    # The broken control: activations as they are give another product.
    assert count == 1 or error(product(x, packed, bias), x, unpack(packed), bias) > 1e-4


def test_a_dynamic_row_does_not_depend_on_its_company() -> None:
    packed, x = matrix("int8_dynamic"), rows(40)
    together = product(x, packed)
    for n in range(40):
        torch.testing.assert_close(product(x[n : n + 1], packed)[0], together[n], atol=1e-5, rtol=1e-5)
