"""How a model knows the order of its tokens.

- Rotary (Su et al., 2021, eq. 34) in the half-split layout of the published Llama weights: element i of a head is
  paired with element i + N/2, not with its neighbour. Angles are computed in fp32 whatever the model's dtype is.
- Sinusoidal (Vaswani et al., 2017, section 3.5) in the layout of the authors' code: all sines, then all cosines.
- Learned positions are a plain embedding table and live in `transformer.py`.

Invariant its test checks: rotated scores depend on the difference of two positions only; both match closed forms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and signed sines of one forward pass, made once and shared by all layers."""

    cos: Tensor
    """(T, 1, N) or (B, T, 1, N)."""
    signed_sin: Tensor
    """Same shape; the first half is negated, so that a rotation is x * cos + swapped(x) * signed_sin."""


def rotation(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """The rotation for `positions`, (T,) or (B, T) int64."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[..., None, None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))


def rotate(x_BTHN: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + N/2) of each head by the angle of its position."""
    first, second = x_BTHN.chunk(2, -1)
    return torch.addcmul(x_BTHN * rotation.cos, torch.cat((second, first), -1), rotation.signed_sin)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Fixed sines and cosines, (..., D) fp32, for `positions` (...) int64; wavelengths 2 pi to 10000 x 2 pi."""
    steps = torch.arange(width // 2, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(steps * (-math.log(10_000.0) / max(1, width // 2 - 1)))
    angles = positions[..., None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1)


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """(B, T) int64: how far each position is from the start of its run of equal segment numbers."""
    index = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand(segments_BT.shape)
    begins = torch.ones_like(segments_BT, dtype=torch.bool)
    begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values
