"""Keys and values that attention has computed once: those of the past (`Cache`) and those of a source (`Memory`).

A stack asks little of a past, which `KeyValues` says, so that it may also be kept elsewhere (`generation/slots.py`).

Both are arguments and returns, never attributes of a layer. Invariants their tests check: any split of a sequence into
cached chunks gives the logits of one pass (but with `dynamic` rotary scaling, whose base grows with the text); tokens
of one segment cannot reach another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trivium.models.config import ModelConfig


class KeyValues(Protocol):
    """The past of B rows as a stack reads and extends it."""

    @property
    def length(self) -> int:
        """S: how many places of each row attention reads."""
        ...

    @property
    def segments(self) -> Tensor | None:
        """(B, at least S) int32: which segment each place belongs to (0: padding); None: one segment, no padding."""
        ...

    @property
    def places(self) -> Tensor | None:
        """(B, T) int64: where in its row each of the newest positions stands, and what it sees ends; None: the last T
        places of all rows."""
        ...

    def extended(self, count: int, segments_BT: Tensor | None) -> Self:
        """The past with room for `count` positions more of each row."""
        ...

    def update(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of the newest T positions; returns those of all places, (B, K, S, N) each."""
        ...


Past = TypeVar("Past", bound=KeyValues)


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of the positions seen so far, for every layer of a decoder.

    Ownership: `hidden(..., cache=cache)` returns the cache that *supersedes* the one passed, because both share
    buffers. Using a superseded cache again raises an error instead of giving wrong numbers; go back with `truncate`,
    branch with `reorder` (which copies).
    """

    keys: tuple[Tensor, ...]
    """L times (B, K, capacity, N); positions from `length` on are not yet written."""
    values: tuple[Tensor, ...]
    """L times (B, K, capacity, N)."""
    length: int
    """How many positions are held."""
    segments: Tensor | None
    """(B, capacity) int32: which segment each held position belongs to (0: padding); None: one segment, no padding."""
    turn: int
    """Which of all the caches that have shared these buffers this is, counted in the order they were made."""
    latest: list[int]
    """One number that those caches share: the `turn` of the only one that may still be used."""

    @classmethod
    def empty(
        cls, config: ModelConfig, batch: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> Cache:
        """A cache of no positions with room for `capacity` of them; when they are used up, its buffers double."""
        shape = (batch, config.kv_heads, capacity, config.head_width)
        layers = config.decoder_layers or config.layers
        keys, values = (tuple(torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)) for _ in range(2))
        return cls(keys, values, 0, None, 0, [0])

    @property
    def batch(self) -> int:
        """How many rows (B)."""
        return self.keys[0].shape[0]

    @property
    def places(self) -> None:
        """All rows grow together."""

    @property
    def capacity(self) -> int:
        """How many positions fit before the buffers must grow."""
        return self.keys[0].shape[2]

    def extended(self, count: int, segments_BT: Tensor | None) -> Cache:
        """The cache with `count` more positions, whose keys and values `update` writes layer by layer.

        `segments_BT` (B, count) tells their segments; None continues each row's last segment.
        """
        self._check_current()
        length = self.length + count
        grown = self if length <= self.capacity else self._resized(max(length, 2 * self.capacity))
        segments = grown.segments
        if segments is None and segments_BT is not None:
            segments = torch.ones((self.batch, grown.capacity), dtype=torch.int32, device=self.keys[0].device)
        if segments is not None:
            last = segments[:, self.length - 1 : self.length] if segments_BT is None else segments_BT
            segments[:, self.length : length] = last
        return grown._superseded_by(length, segments)

    def update(self, layer: int, k_BKTN: Tensor, v_BKTN: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of the newest T positions; returns those of all positions, (B, K, length, N) each."""
        start = self.length - k_BKTN.shape[2]
        k_BKSN, v_BKSN = self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]
        k_BKSN[:, :, start:] = k_BKTN
        v_BKSN[:, :, start:] = v_BKTN
        return k_BKSN, v_BKSN

    def truncate(self, length: int) -> Cache:
        """The cache as it was after its first `length` positions; it supersedes this one."""
        self._check_current()
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        return self._superseded_by(length, self.segments if length else None)

    def reorder(self, index: Tensor) -> Cache:
        """A copy whose row i is row `index[i]` of this one (beam search, or one prefix for many rows)."""
        self._check_current()
        return Cache(
            tuple(k.index_select(0, index) for k in self.keys),
            tuple(v.index_select(0, index) for v in self.values),
            self.length,
            None if self.segments is None else self.segments.index_select(0, index),
            0,
            [0],
        )

    def _resized(self, capacity: int) -> Cache:
        """A copy with another capacity."""

        def copied(old: Tensor) -> Tensor:
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, : self.length] = old[:, :, : self.length]
            return new

        segments = self.segments
        if segments is not None:
            segments = F.pad(segments[:, : self.length], (0, capacity - self.length))
        self.latest[0] = -1  # the old buffers are given up
        keys, values = tuple(map(copied, self.keys)), tuple(map(copied, self.values))
        return Cache(keys, values, self.length, segments, 0, [0])

    def _superseded_by(self, length: int, segments: Tensor | None) -> Cache:
        """The next cache over the same buffers."""
        self.latest[0] = self.turn + 1
        return replace(self, length=length, segments=segments, turn=self.turn + 1)

    def _check_current(self) -> None:
        if self.turn != self.latest[0]:
            raise RuntimeError(
                "this cache was superseded: use the one returned by the last call, or branch with reorder()"
            )


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values of a source, for the cross-attention of every layer of an encoder-decoder's decoder."""

    keys: tuple[Tensor, ...]
    """L times (B, K, S, N)."""
    values: tuple[Tensor, ...]
    """L times (B, K, S, N)."""
    segments: Tensor | None
    """(B, S) int32: which target a source position is for (0: padding); None: one source a row, without padding."""

    def reorder(self, index: Tensor) -> Memory:
        """A copy whose row i is row `index[i]` of this one (beam search, or rows that have ended)."""
        return Memory(
            tuple(k.index_select(0, index) for k in self.keys),
            tuple(v.index_select(0, index) for v in self.values),
            None if self.segments is None else self.segments.index_select(0, index),
        )
