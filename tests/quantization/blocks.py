"""Blocks of numbers that are hard to round, and how far rounding may go (R15)."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from trivium.quantization import nf4
from trivium.quantization.packing import LARGEST, Packed, decode, full_scales, pack
from trivium.quantization.schemes import Layout

LAYOUTS = {
    "int8": Layout("int8", 0, False),
    "int4": Layout("int4", 32, False),
    "int4_asymmetric": Layout("int4_asymmetric", 32, False),
    "nf4": Layout("nf4", 64, False),
    "nf4, double": Layout("nf4", 64, True),
}
BLOCKS, NUMBERS = 256, 64
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def hard_blocks(seed: int, numbers: list[float], largest: float) -> torch.Tensor:
    """(256, 64) fp32: of each kind some, and `numbers` strewn in; none beyond `largest`."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((BLOCKS, NUMBERS))
    sizes = 10.0 ** rng.uniform(-45, 38, (BLOCKS, 1))
    with np.errstate(invalid="ignore"):
        bits = rng.integers(0, 2**32, (BLOCKS, NUMBERS), dtype=np.uint32).view(np.float32).astype(np.float64)
    one = np.where(np.arange(NUMBERS) == rng.integers(0, NUMBERS, (BLOCKS, 1)), sizes * 1e4, normal * sizes)
    kinds = [
        normal * 10.0 ** rng.uniform(-6, 2, (BLOCKS, 1)),
        normal * sizes,
        one,
        normal * 2.0**-149 * rng.integers(1, 100, (BLOCKS, 1)),
        np.broadcast_to(sizes * rng.choice([-1, 1], (BLOCKS, 1)), normal.shape),
        largest * rng.choice([-1.0, 1.0], normal.shape),
        largest * rng.choice([-1.0, 0.0, 1e-3, 1.0], normal.shape),
        np.zeros_like(normal),
        bits,
        sizes * (1 + normal * 1e-7),
    ]
    chosen = np.stack(kinds)[rng.integers(0, len(kinds), BLOCKS), np.arange(BLOCKS)]
    places = rng.integers(0, NUMBERS, (BLOCKS, len(numbers)))
    np.put_along_axis(chosen, places, np.array(numbers), 1)
    chosen = np.nan_to_num(chosen, nan=0.0, posinf=largest, neginf=-largest).clip(-largest, largest)
    return torch.from_numpy(chosen.astype(np.float32))


def largest_of(how: Layout) -> float:
    """The largest fp32 number that the format takes."""
    return float(np.nextafter(np.float32(LARGEST[how.kind]), np.float32(0)))


def worst(weight: torch.Tensor, packed: Packed) -> float:
    """The largest |w - w^| as a share of what R15 allows: at most 1 where the bound holds.

    Allowed are half a scale (of nf4 half the widest gap of levels) and one unit in the last place of the largest number
    of the group.
    """
    groups = packed.group_size or weight.shape[1]
    w = weight.double().view(len(weight), -1, groups)
    found = decode(packed).double().view(w.shape)
    scales = full_scales(packed).double().abs().view(*w.shape[:2], 1)
    share = nf4.widest_gap() / 2 if packed.kind == "nf4" else 0.5
    largest = torch.maximum(w.abs(), found.abs()).amax(-1, keepdim=True)
    ulp = torch.from_numpy(np.spacing(largest.numpy().astype(np.float32)).astype(np.float64))
    return float(((w - found).abs() / (scales * share + ulp)).max())


def check(how: Layout, seed: int, numbers: list[float]) -> None:
    weight = hard_blocks(seed, numbers, largest_of(how))
    assert worst(weight, pack(weight, how)) <= 1.0
