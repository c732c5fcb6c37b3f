"""Narrower ranges for groups of 4-bit codes: an outlier that is cut lets all others have finer steps.

The range of each group is shrunk to the share of it, from all to half, that gives the smallest |X_g (w_g - w^_g)|^2 on
the calibration text, X_g being the inputs of that group alone (Lin et al., 2023, search their clipping so). What lies
outside takes the outermost code.

Invariant its test checks: no group's share of the error grows, and numbers only move towards zero.

Shapes: O outputs, I inputs, G inputs of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trivium.quantization.packing import pack, unpack
from trivium.quantization.schemes import Layout

# Shares of a group's range that are tried beside all of it.
SHARES = tuple(1 - step / 20 for step in range(1, 11))
# A matrix is narrowed so many numbers at a time.
NUMBERS_AT_A_TIME = 1 << 22


def narrowed(weight: Tensor, gram: Tensor, how: Layout) -> Tensor:
    """`weight` (O, I) with the range of each group cut where that lowers its own share of the output's error."""
    size = how.group_size
    starts = range(0, weight.shape[1], size)
    blocks = torch.stack([gram[start : start + size, start : start + size] for start in starts])  # (I/G, G, G)
    parts = torch.split(weight, max(1, NUMBERS_AT_A_TIME // weight.shape[1]))
    return torch.cat([_narrowed_rows(part, blocks, how) for part in parts])


def _narrowed_rows(weight: Tensor, blocks: Tensor, how: Layout) -> Tensor:
    groups = weight.view(len(weight), len(blocks), -1)  # (O, I/G, G)
    low, high = (extreme[..., None] for extreme in torch.aminmax(groups, dim=-1))

    def errors(cut: Tensor) -> Tensor:
        """(O, I/G, 1): of each group rounded when its numbers are cut to `cut`."""
        difference = unpack(pack(cut.flatten(1), how)).view_as(groups) - groups
        return ((difference.transpose(0, 1) @ blocks).transpose(0, 1) * difference).sum(-1, keepdim=True)

    best, least = groups, errors(groups)
    for share in SHARES:
        cut = groups.clamp(low * share, high * share)
        found = errors(cut)
        best, least = torch.where(found < least, cut, best), torch.minimum(found, least)
    return best.flatten(1)
