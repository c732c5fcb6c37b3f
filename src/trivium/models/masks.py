"""Who sees whom: what is added to the scores of attention, decided once per forward pass and shared by all layers.

A key may be hidden from a query because it is in the future (causality), in another document or padding (segments), or
too far away (a sliding window). Nothing hides a position from itself, so no softmax is ever empty. What remains visible
may be weighted by distance: ALiBi (Press et al., 2022) by a fixed slope per head, T5's relative positions (Raffel et
al., 2020, section 2.1) by a learned bias per bucket of distances. Distances are those within the row, which within one
document are those within the document.

Shapes: B rows, T queries (the last of S positions), S keys, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_mask(
    tokens: int,
    segments_BS: Tensor | None,
    length: int,
    causal: bool,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int = 0,
    prefix_BS: Tensor | None = None,
    places_BT: Tensor | None = None,
) -> Tensor | None:
    """What is added to the scores of T queries over S = `length` keys: 0, or -inf where not to be seen.

    (B, 1, T, S), or (1, 1, T, S), of `dtype`; None when nothing is to be masked, or (T == S) plain causality alone,
    for which attention has a faster way. `window`: see `ModelConfig.sliding_window`; 0: none. `prefix_BS`: positions
    that all of their document may see. `places_BT`: see `query_places`.
    """
    index = torch.arange(length, device=device)
    queries = query_places(tokens, length, device, places_BT)[:, :, None]
    narrow = 0 < window < length
    special = segments_BS is not None or length > tokens or narrow or prefix_BS is not None
    seen: Tensor | None = None
    if causal and (places_BT is not None or (tokens > 1 and special)):
        seen = (queries >= index)[:, None]
        if prefix_BS is not None:
            seen = seen | prefix_BS[:, None, None, :]
    if narrow:
        near = queries - index < window
        if not causal or prefix_BS is not None:
            near &= index - queries < window
        seen = near[:, None] if seen is None else seen & near[:, None]
    if segments_BS is not None:
        same = segments_BS[:, None, length - tokens :, None] == segments_BS[:, None, None, :]
        seen = same if seen is None else same & seen
    return None if seen is None else _added(seen, dtype)


def with_learned(
    mask: Tensor | None,
    bias: Tensor | None,
    positions_BT: Tensor,
    learned: int,
    length: int,
    window: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """`mask` over S = `length` keys with P = `learned` columns in front, for positions before every document.

    Every query sees them, but for a window that ends before (as if they were text); `bias` (B or 1, H, T, P) weighs
    them by distance. `positions_BT` count within the document, from P on, so that neighbours in a row change nothing.
    """
    T = positions_BT.shape[1]
    index = torch.arange(learned, device=positions_BT.device)
    far = (positions_BT[:, :, None] - index >= window)[:, None] if window else None
    if mask is None and bias is None and (far is None or not bool(far.any())):
        return None
    before = torch.zeros(1, 1, T, learned, dtype=dtype, device=positions_BT.device) if bias is None else bias
    before = before if far is None else before.masked_fill(far, float("-inf"))
    if mask is None:
        mask = before.new_zeros(1, 1, T, length)
    mask = mask[(None,) * (4 - mask.ndim)]
    sizes = [max(ours, theirs) for ours, theirs in zip(before.shape[:3], mask.shape[:3], strict=True)]
    return torch.cat((before.expand(*sizes, -1), mask.expand(*sizes, -1)), -1)


def query_places(tokens: int, length: int, device: torch.device, places_BT: Tensor | None = None) -> Tensor:
    """(B or 1, T) int64: where among S = `length` keys each query stands; the last T of them, or `places_BT`."""
    return torch.arange(length - tokens, length, device=device)[None] if places_BT is None else places_BT


def cross_mask(segments_BT: Tensor | None, source_segments_BS: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of targets over their sources: (B, 1, T or 1, S), or None when all is to be seen.

    A target sees the source of its own number; one that finds none (padding) sees everything, which harms nobody.
    `segments_BT` None: the targets are number 1.
    """
    if source_segments_BS is None:
        return None
    targets = torch.ones_like(source_segments_BS[:, :1]) if segments_BT is None else segments_BT
    seen = targets[:, None, :, None] == source_segments_BS[:, None, None, :]
    return _added(seen | ~seen.any(-1, keepdim=True), dtype)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def alibi_bias(heads: int, tokens: int, length: int, device: torch.device, places_BT: Tensor | None = None) -> Tensor:
    """(B or 1, H, T, S) fp32: minus each head's slope times the distance between query and key.

    The slopes are 2^(-8 i / H) for i = 1..H when H is a power of two; for other H, those of the next smaller power
    and then every other one of the next larger.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    index = torch.arange(length, device=device)
    distance = (query_places(tokens, length, device, places_BT)[:, :, None] - index).abs().float()
    return -torch.tensor(slopes, device=device)[None, :, None, None] * distance[:, None]


def relative_buckets(
    tokens: int,
    length: int,
    causal: bool,
    buckets: int,
    max_distance: int,
    device: torch.device,
    places_BT: Tensor | None = None,
) -> Tensor:
    """(T, S) int64, or with `places_BT` (B, T, S): the bucket of each distance, as in T5.

    Half of the buckets hold one distance each, the other half ever more of them, up to `max_distance`. A stack that
    sees both ways gives half of all to keys that lie ahead.
    """
    index = torch.arange(length, device=device)
    queries = index[length - tokens :] if places_BT is None else places_BT
    ahead = index - queries[..., None]
    if causal:
        first, distance = torch.zeros_like(ahead), (-ahead).clamp(min=0)
    else:
        buckets //= 2
        first, distance = (ahead > 0) * buckets, ahead.abs()
    exact = buckets // 2
    growth = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + growth.long()).clamp(max=buckets - 1)
    return first + torch.where(distance < exact, distance, far)
