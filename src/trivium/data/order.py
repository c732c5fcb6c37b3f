"""Which row comes when: arithmetic on (seed, epoch, index), so that there is nothing to replay and nothing to store.

A shuffle is a Feistel network on the smallest power of four that holds all rows, walked again while it leads outside
(cycle walking: Black and Rogaway, 2002); its round function is the 64-bit finalizer of SplitMix64 (Steele et al.,
2014). It is a bijection by construction, for every size and key, and costs O(1) memory.

A mixture deals the places of the endless run out to its sources as evenly as whole numbers allow: of the first i
places the first source has floor(i counts[0] / sum(counts)), the next likewise of those that are left, and so on. Each
source fills its places with its own shuffled rows, epoch after epoch. Without weights the counts are the sizes, so that
all epochs end together.

The invariants its test checks: permutations are bijections and look random; every block of sum(counts) places holds
source s exactly counts[s] times; every source gives each of its rows once before it gives one again. Functions of
indices take and return numpy arrays, one entry for each index.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Keys = NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
# Weights are rounded to fractions with denominators up to this (3:1, 0.7:0.3 and per mille are exact), or, where the
# common denominator of many would be huge, to millionths.
_WEIGHT_DENOMINATOR = 1000
_MOST_BLOCK_ROWS = 1_000_000


def key_of(*parts: int | str) -> int:
    """A 64-bit key from a seed and names, unrelated for unequal parts."""
    text = "\n".join(f"{type(part).__name__} {part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw_of(*parts: int | str) -> np.random.Generator:
    """A random generator for one thing (a row of an epoch), unrelated to those of other things."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts)))


def mix(values: Keys) -> Keys:
    """SplitMix64's finalizer: a bijection of 64-bit numbers in which every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys_at(key: int, numbers: Indices) -> Keys:
    """The key of each number (an epoch, a block) under `key`."""
    return mix(np.uint64(key) ^ mix((numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)))


def permutation(index: int, size: int, key: int) -> int:
    """Where `index` (0 <= index < size) goes under the shuffle of `size` things by `key`."""
    return int(permute(np.array([index]), size, np.array([key], dtype=np.uint64))[0])


def permute(indices: Indices, size: int, keys: Keys) -> Indices:
    """Where each index goes under the shuffle of `size` (1 to 2**62) things by its key."""
    half_bits = np.uint64(max(1, math.ceil((size - 1).bit_length() / 2)))
    moved = indices.astype(np.uint64)
    outside = np.arange(len(moved))
    while len(outside):
        moved[outside] = _feistel(moved[outside], half_bits, keys[outside])
        outside = outside[moved[outside] >= size]
    return moved.astype(np.int64)


def _feistel(values: Keys, half_bits: np.uint64, keys: Keys) -> Keys:
    """One bijection of the numbers below 4**half_bits for each key."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for round_number in range(1, _ROUNDS + 1):
        round_keys = keys + np.uint64(round_number * _GOLDEN % 2**64)
        # The high bits of the product are its best mixed.
        scrambled = mix(right ^ mix(round_keys)) >> (np.uint64(64) - half_bits)
        left, right = right, left ^ scrambled
    return (left << half_bits) | right


@dataclass(frozen=True)
class Places:
    """Where rows come from: three arrays of equal length, one entry for each global index."""

    source: Indices
    """Number of the source."""
    epoch: Indices
    """How many times that source has been gone through before."""
    row: Indices
    """Number of the row within the source."""


class Mixture:
    """The endless order of the rows of one or several sources."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        """`sizes`: rows in each source (all above 0). `weights`: how often each source is drawn from, relative to
        the others (all above 0); None: as often as it has rows, so that all end their epochs together."""
        if not sizes or min(sizes) < 1:
            raise ValueError("every source needs at least one row")
        self.sizes = tuple(sizes)
        self.counts = self.sizes if weights is None else block_counts(weights)
        if len(self.counts) != len(self.sizes):
            raise ValueError("one weight for each source")
        self._row_keys = [key_of(seed, "row", source) for source in range(len(sizes))]

    def places(self, indices: Indices) -> Places:
        """Source, epoch and row of each global index (0, 1, 2, ... without end)."""
        sources, nth = self._deal(indices)
        epochs, rows = np.empty_like(nth), np.empty_like(nth)
        for source, size in enumerate(self.sizes):
            mine = sources == source
            epochs[mine], offsets = np.divmod(nth[mine], size)
            rows[mine] = permute(offsets, size, keys_at(self._row_keys[source], epochs[mine]))
        return Places(sources, epochs, rows)

    def _deal(self, indices: Indices) -> tuple[Indices, Indices]:
        """(source, how many places it had before) of each global index."""
        sources, nth = np.empty_like(indices), np.empty_like(indices)
        waiting, places, total = np.arange(len(indices)), indices, sum(self.counts)
        for source, count in enumerate(self.counts):
            blocks, offsets = np.divmod(places, total)
            before = blocks * count + offsets * count // total
            taken = (offsets + 1) * count // total > offsets * count // total
            sources[waiting[taken]], nth[waiting[taken]] = source, before[taken]
            waiting, places, total = waiting[~taken], (places - before)[~taken], total - count
        return sources, nth


def block_counts(weights: Sequence[float]) -> tuple[int, ...]:
    """Small whole numbers in the proportion of `weights`, none of them 0."""
    least = Fraction(1, _WEIGHT_DENOMINATOR)
    shares = [Fraction(weight / max(weights)).limit_denominator(_WEIGHT_DENOMINATOR) or least for weight in weights]
    scale = math.lcm(*(share.denominator for share in shares))
    counts = [int(share * scale) for share in shares]
    if sum(counts) > _MOST_BLOCK_ROWS:
        return tuple(max(1, round(_MOST_BLOCK_ROWS * weight / math.fsum(weights))) for weight in weights)
    divisor = math.gcd(*counts)
    return tuple(count // divisor for count in counts)
