"""Draws that belong to a sequence, not to a batch.

The uniform number behind the t-th token of a sequence is a hash of (the sequence's seed, t): no generator is
advanced, so neither the other rows of a batch, nor the order in which they finish, nor resuming in the middle can
change it. The token is found by inverting the cumulative distribution in fp64, which costs one number per draw (the
Gumbel trick would cost V).

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def sequence_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th sequence (from 0) of a call that was seeded with `seed`."""
    return int.from_bytes(_hash(b"sequence", seed, index), "little", signed=True)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1): the draw of the sequence seeded `seed` at its `step`-th new token (from 0).

    It has 52 bits, so that its product with a cumulative sum near 1 rounds to less than that sum.
    """
    return (int.from_bytes(_hash(b"uniform", seed, step), "little") >> 12) * 2.0**-52


def draw(scores_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """One token id per row, (B,) int64, with probability softmax(scores); a score of -inf is never drawn."""
    cumulative_BV = scores_BV.double().softmax(-1).cumsum(-1)
    target_B = torch.tensor(uniforms, dtype=torch.float64, device=scores_BV.device) * cumulative_BV[:, -1]
    # The first index whose cumulative sum exceeds the target; it cannot be one of probability 0.
    return torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]


def _hash(purpose: bytes, seed: int, index: int) -> bytes:
    """8 bytes from a counter-based hash (BLAKE2b), the same on every machine."""
    message = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    return hashlib.blake2b(message, digest_size=8, person=purpose).digest()
