"""Attention for half precision on CPU, by blocks of queries: what SDPA computes, two to three times as fast there.

softmax(Q K^T / sqrt(N) + mask) V. torch's CPU kernel for `scaled_dot_product_attention` reaches a tenth of the bf16
matrix speed of a current processor, and its backward pass less. Here a block of queries meets the keys it may see in
one batched matrix product (for causal attention that skips nearly half of the work), and the backward pass computes the
probabilities again instead of keeping them, so memory stays linear in T (Dao et al. 2022, arXiv:2205.14135, 3.1;
departure: whole rows of keys at once, hence an ordinary softmax).

Scores are rounded to the dtype of the inputs before the softmax, as in every unfused implementation: in fp32 the result
equals SDPA to rounding (and is no faster), in bf16 to bf16's.

Invariant (tested): output and gradients equal SDPA's, for causal, bidirectional and document masks.
Shapes: B rows, H query heads, K key/value heads, T queries, S keys, N head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Queries per block: large enough for full matrix speed, small enough that a block of scores stays in cache and the
# causal triangle is followed closely. Measured best among 64, 128, 256 for T from 256 to 1024.
QUERIES_PER_BLOCK = 128


class _BlockAttention(torch.autograd.Function):
    """Each product below is over all B x K key/value heads at once; their G = H/K query heads share its rows."""

    @staticmethod
    def forward(ctx: Any, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        q, k, v = _grouped(q_BHTN, k_BKSN.shape[1]), k_BKSN.flatten(0, 1), v_BKSN.flatten(0, 1)
        out = torch.empty_like(q)
        for start, stop, seen in _blocks(q.shape[2], k.shape[1], causal):
            rows = q[:, :, start:stop].flatten(1, 2)
            p = _probabilities(rows, k[:, :seen], mask, causal, start, stop)
            out[:, :, start:stop] = torch.bmm(p, v[:, :seen]).view(*out.shape[:2], -1, out.shape[3])
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal, ctx.kv_shape = causal, k_BKSN.shape
        return out.view(q_BHTN.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        g_out = _grouped(gradients[0], ctx.kv_shape[1])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for start, stop, seen in _blocks(q.shape[2], k.shape[1], ctx.causal):
            rows, g = q[:, :, start:stop].flatten(1, 2), g_out[:, :, start:stop].flatten(1, 2)
            p = _probabilities(rows, k[:, :seen], mask, ctx.causal, start, stop)
            dv[:, :seen].baddbmm_(p.transpose(1, 2), g)
            dp = torch.bmm(g, v[:, :seen].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p * (dp - sum(p * dp))
            dq[:, :, start:stop] = torch.bmm(ds, k[:, :seen]).view(*q.shape[:2], -1, q.shape[3])
            dk[:, :seen].baddbmm_(ds.transpose(1, 2), rows, alpha=scale)
        dq.mul_(scale)
        return dq.view(gradients[0].shape), dk.view(ctx.kv_shape), dv.view(ctx.kv_shape), None, None


def _grouped(x_BHTN: Tensor, kv_heads: int) -> Tensor:
    """(B, H, T, N) -> contiguous (B*K, G, T, N): neighbouring query heads share a key/value head."""
    B, H, T, N = x_BHTN.shape
    return x_BHTN.reshape(B * kv_heads, H // kv_heads, T, N)


def _blocks(num_queries: int, num_keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, query after the last, number of keys seen) of each block."""
    starts = range(0, num_queries, QUERIES_PER_BLOCK)
    stops = [min(start + QUERIES_PER_BLOCK, num_queries) for start in starts]
    return [(a, b, b if causal else num_keys) for a, b in zip(starts, stops, strict=True)]


def _probabilities(rows: Tensor, k: Tensor, mask: Tensor | None, causal: bool, start: int, stop: int) -> Tensor:
    """(B*K, G*block, seen) attention probabilities of queries `start` to `stop`; one that sees nothing gets NaN."""
    block, seen = stop - start, k.shape[1]
    bias = rows.new_zeros(block, seen)
    if causal:
        hidden = torch.ones(block, seen, dtype=torch.bool, device=rows.device).triu_(start + 1)
        bias.masked_fill_(hidden, float("-inf"))
    bias = bias.repeat(rows.shape[1] // block, 1)
    scores = torch.baddbmm(bias, rows, k.transpose(1, 2), alpha=rows.shape[-1] ** -0.5)
    if mask is not None:
        rows_of_mask = mask if mask.shape[2] == 1 else mask[:, :, start:stop]
        scores.view(mask.shape[0], -1, block, seen).add_(rows_of_mask[..., :seen])
    return torch.softmax(scores, -1)


def block_attention(
    q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention of T queries over S keys, H query heads sharing K key/value heads: (B, H, T, N).

    `mask` (B or 1, 1, T or 1, S) is added to the scores. With `causal` (T equal to S), query t sees keys 0..t and of
    those what the mask allows.
    """
    result: Tensor = _BlockAttention.apply(q_BHTN, k_BKSN, v_BKSN, mask, causal)  # type: ignore[no-untyped-call]
    return result
