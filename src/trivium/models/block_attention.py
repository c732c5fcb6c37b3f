"""Exact attention for training on CPU, by blocks of queries: what SDPA computes, two to three times as fast there.

softmax(Q K^T / sqrt(d) + mask) V. torch's CPU kernel for `scaled_dot_product_attention` reaches a tenth of the bf16
matrix speed of a current processor, and its backward pass less. Here a block of queries meets the keys it may see in
one batched matrix product (for causal attention that skips nearly half of the work), and the backward pass computes the
probabilities again instead of keeping them, so memory stays linear in T (Dao et al. 2022, arXiv:2205.14135, 3.1;
departure: whole rows of keys at once, hence an ordinary softmax).

Scores are rounded to the dtype of the inputs before the softmax, as in every unfused implementation: in fp32 the result
equals SDPA to rounding, in bf16 to bf16's.

Invariant (tested): output and gradients equal SDPA's, for causal, bidirectional and document masks.
Shapes: B batch, H heads, T queries, S keys, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Queries per block: large enough for full matrix speed, small enough that a block of scores stays in cache and the
# causal triangle is followed closely. Measured best among 64, 128, 256 for T from 256 to 1024.
QUERIES_PER_BLOCK = 128


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BTS: Tensor | None, causal: bool
    ) -> Tensor:
        out_BHTK = v_BHSK.new_empty(*q_BHTK.shape[:-1], v_BHSK.shape[-1])
        q, k, v, out = (x.reshape(-1, *x.shape[-2:]) for x in (q_BHTK, k_BHSK, v_BHSK, out_BHTK))
        for start, stop, seen in _blocks(q.shape[1], k.shape[1], causal):
            p = _probabilities(q, k, mask_BTS, causal, start, stop, seen)
            torch.bmm(p, v[:, :seen], out=out[:, start:stop])
        ctx.save_for_backward(q_BHTK, k_BHSK, v_BHSK, mask_BTS)
        ctx.causal = causal
        return out_BHTK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTK, k_BHSK, v_BHSK, mask_BTS = ctx.saved_tensors
        q, k, v, grad = (x.reshape(-1, *x.shape[-2:]) for x in (q_BHTK, k_BHSK, v_BHSK, grads[0]))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for start, stop, seen in _blocks(q.shape[1], k.shape[1], ctx.causal):
            p = _probabilities(q, k, mask_BTS, ctx.causal, start, stop, seen)
            g = grad[:, start:stop]
            dv_seen, dk_seen = dv[:, :seen], dk[:, :seen]
            dv_seen.baddbmm_(p.transpose(1, 2), g)
            dp = torch.bmm(g, v[:, :seen].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p * (dp - sum(p * dp))
            dq[:, start:stop] = torch.bmm(ds, k[:, :seen])
            dk_seen.baddbmm_(ds.transpose(1, 2), q[:, start:stop], alpha=scale)
        dq.mul_(scale)
        return dq.view(q_BHTK.shape), dk.view(k_BHSK.shape), dv.view(v_BHSK.shape), None, None


def _blocks(num_queries: int, num_keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, query after the last, number of keys seen) of each block."""
    stops = [min(s + QUERIES_PER_BLOCK, num_queries) for s in range(0, num_queries, QUERIES_PER_BLOCK)]
    starts = range(0, num_queries, QUERIES_PER_BLOCK)
    return [(a, b, b if causal else num_keys) for a, b in zip(starts, stops, strict=True)]


def _probabilities(
    q: Tensor, k: Tensor, mask_BTS: Tensor | None, causal: bool, start: int, stop: int, seen: int
) -> Tensor:
    """(B*H, block, seen) attention probabilities of one block of queries; a query that sees nothing gets NaN."""
    block = stop - start
    bias = q.new_zeros(block, seen)
    if causal:
        hidden = torch.ones(block, seen, dtype=torch.bool, device=q.device).triu_(start + 1)
        bias.masked_fill_(hidden, float("-inf"))
    scores = torch.baddbmm(bias, q[:, start:stop], k[:, :seen].transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    if mask_BTS is not None:
        rows = mask_BTS[:, None, start:stop, :seen]
        scores.view(rows.shape[0], -1, block, seen).masked_fill_(~rows, float("-inf"))
    return torch.softmax(scores, -1)


def block_attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, *, mask_BTS: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention of T queries over S keys, all heads; `mask_BTS` is True where a query may see a key.

    With `causal` (T equal to S), query t sees keys 0..t as well as what the mask allows. Returns (B, H, T, K).
    """
    result: Tensor = _BlockAttention.apply(q_BHTK, k_BHSK, v_BHSK, mask_BTS, causal)  # type: ignore[no-untyped-call]
    return result
