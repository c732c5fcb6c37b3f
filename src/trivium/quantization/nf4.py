"""NormalFloat: 16 levels at the quantiles of a normal distribution, and its scales in 8 bits (QLoRA).

Dettmers et al. (2023), section 3: the levels of NF4 are quantiles of N(0, 1), 8 of its negative half and 9 of its
positive half with one zero in common, divided by the largest. The outermost quantile is the mean of 1 - 1/32 and
1 - 1/30, as in the published table. A block's scale is its largest magnitude.

Double quantization stores these scales as int8 codes around their mean, with one fp32 scale per 256 of them. Departure:
codes are rounded up, not to nearest, so that a stored scale is never below the largest magnitude of its block and the
bound holds for outliers too.

Invariants its test checks: the levels are the published 16 numbers; a stored scale is never below the true one;
|w - w^| <= scale * half the gap between neighbouring levels.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from trivium.quantization.schemes import SCALES_PER_SUPERBLOCK

LARGEST_CODE = 127


@cache
def levels() -> tuple[float, ...]:
    """The 16 levels from -1 to 1, as fp32 numbers."""
    outermost = (1 - 1 / 32 + 1 - 1 / 30) / 2

    def quantiles(steps: int) -> list[float]:
        """`steps` quantiles from the outermost to just above the median."""
        places = (outermost + (0.5 - outermost) * step / steps for step in range(steps))
        return [NormalDist().inv_cdf(place) for place in places]

    positive, negative = quantiles(8), quantiles(7)
    values = [-value for value in negative] + [0.0] + positive[::-1]
    return tuple((torch.tensor(values, dtype=torch.float64) / positive[0]).float().tolist())


def widest_gap() -> float:
    """The largest distance between neighbouring levels."""
    return max(above - below for below, above in zip(levels(), levels()[1:], strict=False))


def nearest_codes(ratios: Tensor) -> Tensor:
    """The code (uint8) of the level nearest to each number in -1..1."""
    codes = torch.zeros(ratios.shape, dtype=torch.uint8, device=ratios.device)
    for below, above in zip(levels(), levels()[1:], strict=False):  # three times as fast as a search
        codes += ratios > (below + above) / 2
    return codes


def level_table(device: torch.device) -> Tensor:
    """The levels as a tensor (16,) fp32."""
    return torch.tensor(levels(), dtype=torch.float32, device=device)


def compress_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales (any shape, fp32, not negative) -> int8 codes of that shape, fp32 scales (S,) of 256 each, mean (1,).

    What `expand_scales` makes of them is never below the scale.
    """
    flat = scales.flatten()
    mean = flat.double().mean().float()[None]
    padded = torch.nn.functional.pad(flat - mean, (0, -flat.numel() % SCALES_PER_SUPERBLOCK))
    blocks = padded.view(-1, SCALES_PER_SUPERBLOCK)
    largest = blocks.abs().amax(1)
    # One code in 127 is spare for rounding up, and a step always counts beside the mean.
    least = torch.maximum(mean * 2.0**-22, torch.full_like(mean, 2.0**-149))
    shares = largest / (LARGEST_CODE - 1)
    short = shares * (LARGEST_CODE - 1) < largest  # by much among the smallest numbers of fp32, which lie far apart
    shares = torch.where(short, torch.nextafter(shares, torch.full_like(shares, torch.inf)), shares)
    steps = torch.where(largest > 0, torch.maximum(shares, least), 0.0)
    codes = (blocks / torch.where(steps > 0, steps, 1.0)[:, None]).ceil().flatten()[: flat.numel()].to(torch.int8)
    codes += expand_scales(codes, steps, mean) < flat  # the last bit of a sum may fall short
    return codes.view(scales.shape), steps, mean


def expand_scales(codes: Tensor, steps: Tensor, mean: Tensor) -> Tensor:
    """The inverse: fp32 scales in the shape of `codes`."""
    each = steps.repeat_interleave(SCALES_PER_SUPERBLOCK)[: codes.numel()].view(codes.shape)
    return codes.float() * each + mean
