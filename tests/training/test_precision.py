"""Autocast and the fp16 loss scale."""

from __future__ import annotations

import pytest
import torch

from trivium.training.precision import FIRST_FP16_SCALE, SMALLEST_FP16_SCALE, STEPS_BEFORE_GROWTH, LossScale, autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_run_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    a = torch.ones(2, 2)
    with autocast(precision, CPU):
        assert (a @ a).dtype == dtype
    assert (a @ a).dtype == torch.float32


def test_fp16_scale_halves_and_grows_by_powers_of_two() -> None:
    scale = LossScale.for_precision("fp16")
    scale.overflowed()
    assert scale.value == FIRST_FP16_SCALE / 2
    for _ in range(STEPS_BEFORE_GROWTH):
        scale.succeeded()
    assert (scale.value, scale.good_steps) == (FIRST_FP16_SCALE, 0)


def test_fp16_scale_gives_up_when_it_is_not_to_blame() -> None:
    scale = LossScale.for_precision("fp16")
    while scale.can_shrink:
        scale.overflowed()
    assert scale.value == SMALLEST_FP16_SCALE


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_have_no_scale(precision: str) -> None:
    scale = LossScale.for_precision(precision)
    for _ in range(STEPS_BEFORE_GROWTH + 1):
        scale.succeeded()
    assert scale.value == 1.0 and not scale.can_shrink
