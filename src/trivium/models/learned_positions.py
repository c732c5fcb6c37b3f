"""Learned positions before every text: as every layer's attention meets them, their keys and values.

A stack may carry a module that makes them (`Stack.prefix`; `peft/soft_prompts.py`): prefixes (Li & Liang, 2021) are
learned as keys and values; a prompt before a causal stack (Lester et al., 2021) is learned as vectors, which the
stack's own blocks turn into keys and values, since nothing that follows can reach back to it.

They are no part of the cache, and stand before every document of a row. So packing, cached generation and batching are
as without them. Invariants (tests/peft/test_soft_prompts.py): equal to `transformers` with the same keys and values as
a past, and with the vectors put before the embedded text; packed equals alone; cached equals uncached.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LearnedPositions(NamedTuple):
    """P positions that come before every document."""

    keys: tuple[Tensor, ...]
    """L times (1, K, P, N), turned already where positions are rotary."""
    values: tuple[Tensor, ...]
    """L times (1, K, P, N)."""
    source_keys: tuple[Tensor, ...] = ()
    """L times (1, K, P, N): those before a source, where cross-attention has some too; else empty."""
    source_values: tuple[Tensor, ...] = ()
    """Likewise."""

    @property
    def length(self) -> int:
        """P."""
        return self.keys[0].shape[2]


class Recorder:
    """The past of a text that has none (a `models.cache.KeyValues`), which only notes keys and values."""

    segments: None = None
    places: None = None

    def __init__(self, length: int, layers: int) -> None:
        self.length = length
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def extended(self, count: int, segments_BT: Tensor | None) -> Recorder:
        """All positions come in one pass."""
        return self

    def update(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Note those of a layer."""
        self.keys[layer], self.values[layer] = k_BKTN, v_BKTN
        return k_BKTN, v_BKTN

    def learned(self) -> LearnedPositions:
        """What was noted."""
        keys, values = ([each for each in noted if each is not None] for noted in (self.keys, self.values))
        return LearnedPositions(tuple(keys), tuple(values))
