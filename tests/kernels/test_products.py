"""Products with packed matrices: those of the dequantized matrix, at every level of instructions, in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.packed import KINDS, LEVELS, error, matrix, needs_kernels
from trivium.kernels import linear
from trivium.kernels.native import native
from trivium.quantization.products import rounded

pytestmark = needs_kernels
SHAPES = ((1, 64), (17, 96), (33, 160), (70, 576), (5, 1536), (40, 4224))


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRIVIUM_KERNELS", request.param)
    if native() is None:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_dequantized_matrix(kind: str, level: str) -> None:
    numbers = torch.Generator().manual_seed(0)
    for outputs, inputs in SHAPES:
        for group in (32, 64, 128) if kind.startswith("int4") else (32,):
            if inputs % group:
                continue
            tensors, weight = matrix(kind, outputs, inputs, group)
            bias = torch.randn(outputs, generator=numbers)
            for rows in (1, 2, 3, 4, 7, 8, 9, 16, 33):
                x = torch.randn(rows, inputs, generator=numbers)
                met = rounded(x) if kind == "int8_dynamic" else x
                assert error(linear(x, kind, **tensors, bias=bias), met, weight, bias) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_the_same_bit_for_bit_in_any_company(
    kind: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, _ = matrix(kind, 530, 224)
    x = torch.randn(40, 224, generator=torch.Generator().manual_seed(1))
    together = linear(x, kind, **tensors)
    for rows in (1, 2, 3, 4, 5, 6, 8, 13, 33):
        assert torch.equal(linear(x[:rows], kind, **tensors), together[:rows])
        assert torch.equal(linear(x[-rows:], kind, **tensors), together[-rows:])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, kind, **tensors), together)
    finally:
        torch.set_num_threads(threads)


def test_odd_widths_have_tails() -> None:
    for kind in ("int8", "bf16", "fp32", "int8_dynamic"):
        for inputs in (1, 15, 17, 100):
            tensors, weight = matrix(kind, 9, inputs)
            for rows in (3, 7):
                x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(inputs))
                met = rounded(x) if kind == "int8_dynamic" else x
                assert error(linear(x, kind, **tensors), met, weight, torch.zeros(9)) < 1e-6


def test_whole_numbers_are_the_same_bit_for_bit_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, weight = matrix("int8_dynamic", 70, 200)
    x = torch.randn(21, 200, generator=torch.Generator().manual_seed(2))
    x[3], x[4], x[5, 7] = 0, x[4] * 1e-33, 1e4
    found = []
    for level in LEVELS:
        monkeypatch.setenv("TRIVIUM_KERNELS", level)
        if native() is not None:
            found.append(linear(x, "int8_dynamic", **tensors, bias=torch.ones(70)))
    assert all(torch.equal(found[0], other) for other in found)
    assert (found[0][3:5] == 1).all()
    # The broken control: one step for a whole row, which its largest number spoils.
    spoilt = x / x.abs().amax(1, keepdim=True).clamp(min=1e-30)
    spoilt = (spoilt * 127).round() / 127 * x.abs().amax(1, keepdim=True)
    assert error(found[0], rounded(x), weight, torch.ones(70)) < 1e-6
    assert error(found[0], spoilt, weight, torch.ones(70)) > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rows", [1, 9])
def test_what_is_no_number_is_not_hidden_by_rounding(value: float, rows: int, level: str) -> None:
    tensors, _ = matrix("int8_dynamic", 20, 128)
    x = torch.randn(rows, 128)
    x[0, 100] = value
    y = linear(x, "int8_dynamic", **tensors)
    assert y[0].isnan().all() and y[1:].isfinite().all()


def test_groups_padded_beyond_the_input_count_as_zeros() -> None:
    tensors, weight = matrix("int4", 20, 128)
    x = torch.randn(2, 100)
    padded = torch.nn.functional.pad(x, (0, 28))
    assert error(linear(x, "int4", **tensors), padded, weight, torch.zeros(20)) < 1e-6


def test_shape_and_type_are_those_of_the_input() -> None:
    tensors, weight = matrix("int8", 24, 64)
    x = torch.randn(2, 3, 64).bfloat16()
    y = linear(x, "int8", **tensors)
    assert y.shape == (2, 3, 24) and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-2, atol=1.0)
    transposed = torch.randn(64, 5).T
    torch.testing.assert_close(
        linear(transposed, "int8", **tensors), linear(transposed.contiguous(), "int8", **tensors)
    )


@pytest.mark.parametrize("part", ["packed", "scales", "offsets"])
def test_the_control_one_wrong_code_or_scale_is_seen(part: str) -> None:
    tensors, weight = matrix("int4_asymmetric", 20, 128)
    tensors[part] = tensors[part].clone()
    tensors[part][3, 2] += 1
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert error(linear(x, "int4_asymmetric", **tensors), x, weight, torch.zeros(20)) > 1e-5


def test_the_control_halves_exchanged_are_seen() -> None:
    tensors, weight = matrix("int4", 20, 128)
    tensors["packed"] = tensors["packed"] >> 4 | tensors["packed"] << 4
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert error(linear(x, "int4", **tensors), x, weight, torch.zeros(20)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "nf5"}, "there is no kernel for 'nf5'"),
        ({"x": torch.ones(2, 65)}, "rows of 65"),
        ({"x": torch.ones(2, 63)}, "rows of 63"),
        ({"x": torch.ones(2, 64, dtype=torch.float64)}, "fp32, bf16 or fp16"),
        ({"packed": torch.ones(9, 64)}, "packed must be contiguous torch.int8"),
        ({"packed": torch.ones(64, 9, dtype=torch.int8).T}, "contiguous"),
        ({"packed": torch.ones(64, dtype=torch.int8)}, "must be a matrix"),
        ({"scales": torch.ones(8)}, "of shape"),
        ({"scales": None}, "scales is missing"),
        ({"scales": torch.ones(9).half()}, "float32"),
        ({"bias": torch.ones(8)}, "bias must be of shape"),
        ({"kind": "int4", "packed": torch.ones(9, 32, dtype=torch.uint8), "scales": torch.ones(9, 3).half()}, "groups"),
        ({"kind": "int4_asymmetric", "packed": torch.ones(9, 32, dtype=torch.uint8), "scales": torch.ones(9, 2).half()},
         "offsets is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], complaint: str) -> None:
    fitting = {"x": torch.ones(2, 64), "kind": "int8", "packed": torch.ones(9, 64, dtype=torch.int8)}
    with pytest.raises(ValueError, match=complaint):
        linear(**{**fitting, "scales": torch.ones(9), **changes})
