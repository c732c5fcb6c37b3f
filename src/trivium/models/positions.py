"""How a model knows the order of its tokens.

- Rotary (Su et al., 2021, eq. 34) in the half-split layout of the published Llama weights: element i of a head is
  paired with element i + N/2, not with its neighbour. Angles are computed in fp32 whatever the model's dtype is.
  Stretched to longer texts: position interpolation (Chen et al., 2023), a larger base, fixed or growing with the text
  (NTK-aware), YaRN (Peng et al., 2023), and Llama 3's rule.
- Sinusoidal (Vaswani et al., 2017, section 3.5): wavelengths from 2 pi to 10000 x 2 pi; all sines, then all cosines,
  where the paper alternates them (the layout of the published weights, equal up to the order of dimensions).
- Learned positions are a plain embedding table and live in `transformer.py`; biases by distance in `masks.py`.

Invariant its test checks: rotated scores depend on the difference of two positions only; all match closed forms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trivium.models.config import ModelConfig
from trivium.models.rope_scaling import RopeScaling


class Rotation(NamedTuple):
    """Cosines and signed sines of one forward pass, made once and shared by all layers."""

    cos: Tensor
    """(T, 1, R) or (B, T, 1, R), R elements of a head being rotated."""
    signed_sin: Tensor
    """Same shape; the first half is negated, so that a rotation is x * cos + swapped(x) * signed_sin."""


def rotation(positions: Tensor, config: ModelConfig, dtype: torch.dtype, *, local: bool = False) -> Rotation:
    """The rotation for `positions`, (T,) or (B, T) int64; `local`: that of layers with a base of their own."""
    scaling = None if local else config.rope_scaling
    theta = config.local_rope_theta if local else config.rope_theta
    length = int(positions.max()) + 1 if scaling is not None and scaling.method == "dynamic" else 0
    frequencies, factor = rope_frequencies(config.rope_width, theta, scaling, length, positions.device)
    angles = positions[..., None, None].float() * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))


def rope_frequencies(
    rope_width: int, theta: float, scaling: RopeScaling | None, length: int, device: torch.device | str
) -> tuple[Tensor, float]:
    """(R / 2) fp32 radians per position, and what cosines and sines are multiplied by.

    `length`: how many positions there are, for the method that depends on it.
    """
    exponents = torch.arange(0, rope_width, 2, dtype=torch.float32, device=device) / rope_width
    if scaling is None:
        return 1.0 / theta**exponents, 1.0
    power = rope_width / max(1, rope_width - 2)
    if scaling.method == "ntk":
        return 1.0 / (theta * scaling.factor**power) ** exponents, 1.0
    if scaling.method == "dynamic":
        times = max(length, scaling.original_max_positions) / scaling.original_max_positions
        return 1.0 / (theta * (scaling.factor * times - (scaling.factor - 1)) ** power) ** exponents, 1.0
    frequencies = 1.0 / theta**exponents
    if scaling.method == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.method == "llama3":
        return _llama3(frequencies, scaling), 1.0
    kept = _yarn_share_kept(rope_width, theta, scaling, device)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0
    return frequencies * kept + frequencies / scaling.factor * (1 - kept), factor


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Short wavelengths kept, long ones divided, and in between a mean that shifts with the wavelength."""
    original, low, high = (
        scaling.original_max_positions,
        scaling.low_frequency_factor,
        scaling.high_frequency_factor,
    )
    wavelengths = 2 * math.pi / frequencies
    kept = (original / wavelengths - low) / (high - low)
    between = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    far = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    return torch.where((wavelengths <= original / low) & (wavelengths >= original / high), between, far)


def _yarn_share_kept(rope_width: int, theta: float, scaling: RopeScaling, device: torch.device | str) -> Tensor:
    """(R / 2): 1 for pairs that keep their wavelength, 0 for those divided, a ramp in between."""

    def pair_that_turns(times: float) -> float:
        turns = scaling.original_max_positions / (times * 2 * math.pi)
        return rope_width * math.log(turns) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_width - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(rope_width // 2, dtype=torch.float32, device=device) - low) / (high - low)
    return 1 - ramp.clamp(0, 1)


def rotate(x_BTHN: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + R/2) of the first R elements of each head by the angle of its position."""
    rope_width = rotation.cos.shape[-1]
    turned, rest = x_BTHN, None
    if rope_width < x_BTHN.shape[-1]:
        turned, rest = x_BTHN[..., :rope_width], x_BTHN[..., rope_width:]
    first, second = turned.chunk(2, -1)
    turned = torch.addcmul(turned * rotation.cos, torch.cat((second, first), -1), rotation.signed_sin)
    return turned if rest is None else torch.cat((turned, rest), -1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Fixed sines and cosines, (..., D) fp32, for `positions` (...) int64; made in fp64, as published tables are."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
    angles = positions[..., None].double() / 10_000.0**exponents
    return torch.cat((angles.sin(), angles.cos()), -1).float()


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """(B, T) int64: how far each position is from the start of its run of equal segment numbers; 0 in padding."""
    index = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand(segments_BT.shape)
    begins = torch.ones_like(segments_BT, dtype=torch.bool)
    begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return (index - torch.where(begins, index, 0).cummax(1).values) * (segments_BT > 0)
