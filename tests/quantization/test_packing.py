"""Codes and scales: the bound on every element (R15), layouts, and what no format holds."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.blocks import FLOATS, LAYOUTS, check, hard_blocks, largest_of, worst
from trivium.errors import UserError
from trivium.quantization import packing
from trivium.quantization.packing import (
    LARGEST,
    Packed,
    choose_scales,
    encode,
    join,
    pack,
    refuse_unfit,
    separate,
    unpack,
)
from trivium.quantization.quantize import DENSE_DTYPES
from trivium.quantization.schemes import Kind, Layout, packed_bytes, scheme_for

FORMATS = pytest.mark.parametrize("how", LAYOUTS.values(), ids=LAYOUTS)


@FORMATS
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**31), numbers=st.lists(FLOATS, max_size=6))
def test_the_bound_holds_for_20_thousand_blocks(how: Layout, seed: int, numbers: list[float]) -> None:
    check(how, seed, numbers)


@pytest.mark.parametrize("kind", ["int4", "int4_asymmetric", "nf4"])
@pytest.mark.parametrize("group", [64, 128])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), numbers=st.lists(FLOATS, max_size=6))
def test_the_bound_holds_in_larger_groups(kind: Kind, group: int, seed: int, numbers: list[float]) -> None:
    how = Layout(kind, group, kind == "nf4")
    weight = hard_blocks(seed, numbers, largest_of(how)).view(-1, 128)  # two blocks, of like or unlike size, in a row
    assert worst(weight, pack(weight, how)) <= 1.0


def within_half_a_unit(exact: torch.Tensor, found: torch.Tensor, digits: int, smallest: float) -> bool:
    """Whether every number is off by at most half a unit of the last of its binary `digits`."""
    unit = torch.exp2(torch.frexp(exact.double()).exponent.double() - digits).clamp(min=smallest)
    return bool(((found.double() - exact.double()).abs() <= unit / 2).all())


@pytest.mark.parametrize("format, digits, smallest", [("fp16", 11, 2.0**-24), ("bf16", 8, 2.0**-133)])
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**31), numbers=st.lists(FLOATS, max_size=6))
def test_16_bits_are_off_by_half_a_unit_of_their_last_place(
    format: str, digits: int, smallest: float, seed: int, numbers: list[float]
) -> None:
    weight = hard_blocks(seed, numbers, LARGEST[format])
    refuse_unfit(weight, format, "w")
    assert within_half_a_unit(weight, weight.to(DENSE_DTYPES[format]), digits, smallest)  # type: ignore[index]


def test_numbers_cut_off_to_16_bits_break_the_bound() -> None:
    """The broken control: the upper half of each fp32 number, not rounded."""
    weight = hard_blocks(0, [], 1.0)
    cut = (weight.view(torch.int32) >> 16 << 16).view(torch.float32)
    assert torch.equal(cut, cut.bfloat16().float()) and not within_half_a_unit(weight, cut, 8, 2.0**-133)


@pytest.mark.long
@FORMATS
@settings(max_examples=4000, deadline=None)
@given(seed=st.integers(0, 2**31), numbers=st.lists(FLOATS, max_size=6))
def test_the_bound_holds_for_a_million_blocks(how: Layout, seed: int, numbers: list[float]) -> None:
    check(how, seed, numbers)


def test_scales_rounded_after_the_codes_were_made_break_the_bound() -> None:
    """The broken control: codes of the exact scale, stored with the rounded one."""
    weight = hard_blocks(0, [], 1.0)
    exact = weight.view(256, 2, 32).abs().amax(-1) / 7
    codes = (weight.view(256, 2, 32) / exact.clamp(min=1e-30)[..., None]).round().clamp(-8, 7) + 8
    late = Packed("int4", join(codes.flatten(1).to(torch.uint8), "int4"), exact.half())
    assert worst(weight, late) > 1.0
    assert worst(weight, pack(weight, LAYOUTS["int4"])) <= 1.0


def test_a_scale_that_leaves_one_side_out_of_range_breaks_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second control: the usual absmax / -8, which clips an equally large number of the other sign."""
    weight = torch.tensor([[-1.0, 1.0] * 16])
    assert worst(weight, pack(weight, LAYOUTS["int4"])) <= 1.0
    scales = torch.full((1, 1), 1 / 8).half()
    clipped = Packed("int4", join(encode(weight, "int4", scales), "int4"), scales)
    assert worst(weight, clipped) > 1.0


@pytest.mark.parametrize("kind", ["int4", "int4_asymmetric"])
def test_blocks_of_32_are_those_of_ggml(kind: str) -> None:
    """What the bytes mean is what the `gguf` library reads in them."""
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    packed = pack(weight, LAYOUTS[kind])
    halves = [packed.scales] if packed.offsets is None else [packed.scales, packed.offsets]
    parts = [torch.stack(halves, -1).view(torch.uint8).view(8, 3, -1), packed.packed.view(8, 3, 16)]
    blocks = torch.cat(parts, -1).flatten(1).numpy()
    name = {"int4": "Q4_0", "int4_asymmetric": "Q4_1"}[kind]
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert np.array_equal(theirs, unpack(packed).numpy())


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_codes_come_back_from_their_bytes(kind: str) -> None:
    codes = torch.randint(0, 16, (5, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    assert torch.equal(separate(join(codes, kind), kind), codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("format", ["int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"])
def test_sizes_are_those_that_were_planned(format: str, group: int) -> None:
    scheme = scheme_for(format, **({} if format.startswith("int8") else {"group_size": group}))
    weight = torch.randn(24, 384)
    packed = pack(weight, scheme)
    assert packed.num_bytes == packed_bytes(scheme, 24, 384)
    assert packed.shape == (24, 384)
    assert unpack(packed).shape == (24, 384)
    assert packed.group_size == (0 if format.startswith("int8") else group)


@FORMATS
def test_packing_in_pieces_is_packing_at_once(how: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = hard_blocks(3, [], largest_of(how))
    whole = pack(weight, how)
    monkeypatch.setattr(packing, "AT_A_TIME", 1000)
    pieces = pack(weight, how)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, pieces.tensors()[name]), name
    assert torch.equal(unpack(whole), unpack(pieces))


@FORMATS
def test_what_is_packed_again_stays(how: Layout) -> None:
    """Rounding what is on the grid already finds the same numbers."""
    weight = unpack(pack(torch.randn(16, 128, generator=torch.Generator().manual_seed(5)), how))
    scales, offsets = choose_scales(weight, how.kind, how.group_size)
    again = Packed(how.kind, join(encode(weight, how.kind, scales, offsets), how.kind), scales, offsets)
    assert torch.allclose(unpack(again), weight, rtol=0, atol=float(scales.float().abs().max()) * 0.02)


@pytest.mark.parametrize("format", ["int8", "int4", "int4_asymmetric", "nf4"])
@pytest.mark.parametrize(
    "number, said", [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
def test_what_is_no_finite_number_is_refused_by_name(format: str, number: float, said: str) -> None:
    weight = torch.randn(4, 64)
    weight[2, 7] = number
    with pytest.raises(UserError, match=rf"stack.blocks.0.mlp.up holds .*{said}"):
        pack(weight, scheme_for(format), "stack.blocks.0.mlp.up")


@pytest.mark.parametrize("format, number", [("int4", 6e5), ("int4_asymmetric", 7e4), ("int8", 2e38), ("nf4", 2e38)])
def test_what_a_format_cannot_reach_is_refused_by_name(format: str, number: float) -> None:
    weight = torch.randn(4, 64)
    weight[0, 0] = number
    with pytest.raises(UserError, match=rf"mlp.up holds .* and {format} ends at"):
        pack(weight, scheme_for(format), "mlp.up")
