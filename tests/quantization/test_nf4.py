"""NormalFloat: the published levels, and scales in 8 bits that are never too small."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trivium.quantization import nf4

# Dettmers et al. (2023), appendix E.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_the_levels_are_the_published_ones() -> None:
    assert torch.allclose(torch.tensor(nf4.levels()), torch.tensor(PUBLISHED), rtol=0, atol=2e-7)
    assert nf4.levels()[7] == 0.0


def test_each_number_gets_the_nearest_level() -> None:
    numbers = torch.linspace(-1, 1, 4001)
    distances = (numbers[:, None] - torch.tensor(nf4.levels())).abs()
    chosen = distances.gather(1, nf4.nearest_codes(numbers).long()[:, None])[:, 0]
    assert torch.allclose(chosen, distances.amin(1), rtol=0, atol=1e-7)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.floats(-44, 37),
    spread=st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 8.0]),
    count=st.integers(1, 600),
)
@example(seed=0, size=-42.5, spread=1.0, count=3)  # where a step is a few of the smallest numbers that fp32 has
@example(seed=28, size=-42.5, spread=0.0, count=3)
def test_a_stored_scale_is_never_below_the_true_one(seed: int, size: float, spread: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = (10.0**size * torch.exp(spread * torch.randn(count, generator=generator).double())).clamp(max=1e38).float()
    scales[torch.rand(count, generator=generator) < 0.1] = 0
    codes, steps, mean = nf4.compress_scales(scales)
    stored = nf4.expand_scales(codes, steps, mean)
    assert codes.dtype == torch.int8
    assert bool((stored >= scales).all())
    # And not much above it: one step of its 256.
    step = steps.repeat_interleave(256)[:count]
    assert bool((stored.double() - scales.double() <= 2.01 * step.double() + 3e-45).all())


def test_scales_rounded_to_nearest_would_be_too_small() -> None:
    """The broken control: what the paper does puts the largest number of a block beyond the outermost level."""
    scales = torch.rand(512, generator=torch.Generator().manual_seed(0)) + 0.5
    mean = scales.mean()
    steps = (scales - mean).view(2, 256).abs().amax(1, keepdim=True) / 127
    nearest = ((scales - mean).view(2, 256) / steps).round() * steps + mean
    assert bool((nearest.flatten() < scales).any())
