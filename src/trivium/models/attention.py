"""Attention with grouped key/value heads, and the cache of keys and values.

Scaled dot-product attention (Vaswani et al., 2017) with K key/value heads shared by H query heads (Ainslie et al.,
2023), computed by `torch.nn.functional.scaled_dot_product_attention`, or in half precision on CPU by `block_attention`.
Which key a query may see is decided once per forward pass (`attention_mask`) and shared by all layers; a position
always sees itself, so no softmax is ever empty.

The cache is an argument and a return, never an attribute of a layer. Invariants its tests check: any split of a
sequence into cached chunks gives the logits of one pass; tokens of one segment cannot reach another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.block_attention import block_attention
from trivium.models.config import ModelConfig
from trivium.models.positions import Rotation, rotate


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of the positions seen so far, for every layer.

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
        keys, values = (
            tuple(torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)) for _ in range(2)
        )
        return cls(keys, values, 0, None, 0, [0])

    @property
    def batch(self) -> int:
        """How many rows (B)."""
        return self.keys[0].shape[0]

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


def attention_mask(
    tokens: int, segments_BS: Tensor | None, length: int, causal: bool, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """What is added to the scores of T queries, the last of S = `length` positions: 0, or -inf where not to be seen.

    (T, S) or (B, 1, T, S) of `dtype`; None when nothing is to be masked, or (T == S, no segments) causality alone, for
    which attention has a faster way. A position always sees itself, so that padding too has a finite softmax.
    """
    seen: Tensor | None = None
    if causal and tokens > 1 and (segments_BS is not None or length > tokens):
        index = torch.arange(length, device=device)
        seen = index[length - tokens :, None] >= index
    if segments_BS is not None:
        same = segments_BS[:, None, length - tokens :, None] == segments_BS[:, None, None, :]
        seen = same if seen is None else same & seen
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def prefers_blocks(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `block_attention` beats SDPA here; a compiler would unroll its loop, layer by layer, for minutes."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and device.type == "cpu" and not torch.compiler.is_compiling()


class Shared(NamedTuple):
    """What all layers of one forward pass have in common."""

    causal: bool
    """Whether a position sees the past only."""
    mask: Tensor | None
    """See `attention_mask`."""
    rotation: Rotation | None
    """How queries and keys are turned, if positions are rotary."""
    cache: Cache | None
    """Keys and values of the past, with room made for those of this pass."""
    dtype: torch.dtype
    """The type matrix products are computed in (autocast's, where it is on)."""
    by_blocks: bool
    """Whether attention is computed by `block_attention`, which is faster here than SDPA."""


class Attention(nn.Module):
    """Self-attention of one block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, N = config.width, config.head_width
        self.query = nn.Linear(D, config.heads * N, bias=config.qkv_bias)
        self.key = nn.Linear(D, config.kv_heads * N, bias=config.qkv_bias)
        self.value = nn.Linear(D, config.kv_heads * N, bias=config.qkv_bias)
        self.output = nn.Linear(config.heads * N, D, bias=config.attention_output_bias)
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, N
        self.dropout = config.attention_dropout

    def forward(self, x_BTD: Tensor, shared: Shared, layer: int) -> Tensor:
        """(B, T, D) -> (B, T, D); `layer` is this layer's place in the cache."""
        B, T, _ = x_BTD.shape
        q_BTHN = self.query(x_BTD).view(B, T, self.heads, self.head_width)
        k_BTKN = self.key(x_BTD).view(B, T, self.kv_heads, self.head_width)
        v_BTKN = self.value(x_BTD).view(B, T, self.kv_heads, self.head_width)
        if shared.rotation is not None:
            q_BTHN, k_BTKN = rotate(q_BTHN, shared.rotation), rotate(k_BTKN, shared.rotation)
        q_BHTN, k_BKSN, v_BKSN = q_BTHN.transpose(1, 2), k_BTKN.transpose(1, 2), v_BTKN.transpose(1, 2)
        if shared.cache is not None:
            k_BKSN, v_BKSN = shared.cache.update(layer, k_BKSN, v_BKSN)
        dropout = self.dropout if self.training else 0.0
        if shared.by_blocks and not dropout:
            o_BHTN = block_attention(q_BHTN, k_BKSN, v_BKSN, mask=shared.mask, causal=shared.causal)
        else:
            o_BHTN = F.scaled_dot_product_attention(
                q_BHTN,
                k_BKSN,
                v_BKSN,
                attn_mask=shared.mask,
                dropout_p=dropout,
                is_causal=shared.causal and shared.mask is None and T > 1,
                enable_gqa=self.kv_heads != self.heads,
            )
        return self.output(o_BHTN.transpose(1, 2).reshape(B, T, self.heads * self.head_width))  # type: ignore[no-any-return]
