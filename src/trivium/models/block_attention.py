"""Attention for half precision on CPU, by blocks of queries: what SDPA computes, two to three times as fast there.

softmax(Q K^T / sqrt(N) + mask) V. torch's CPU kernel for `scaled_dot_product_attention` reaches a tenth of the bf16
matrix speed of a current processor, and its backward pass less. Here a block of queries meets the keys it may see in
one batched matrix product (for causal attention that skips nearly half of the work), and the backward pass computes the
probabilities again instead of keeping them, so memory stays linear in T (Dao et al. 2022, arXiv:2205.14135, 3.1;
departure: whole rows of keys at once, hence an ordinary softmax).

Scores are rounded to the dtype of the inputs before the softmax, as in every unfused implementation: in fp32 the result
equals SDPA to rounding (and is no faster), in bf16 to bf16's.

Invariant (tested): output and gradients equal SDPA's, for causal, bidirectional and document masks.
Shapes: B batch, H heads, T queries, S keys, N head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Queries per block: large enough for full matrix speed, small enough that a block of scores stays in cache and the
# causal triangle is followed closely. Measured best among 64, 128, 256 for T from 256 to 1024.
QUERIES_PER_BLOCK = 128


class _BlockAttention(torch.autograd.Function):
    """Each of the products below is over all B x H heads at once."""

    @staticmethod
    def forward(ctx: Any, q_BHTN: Tensor, k_BHSN: Tensor, v_BHSN: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        out_BHTN = v_BHSN.new_empty(*q_BHTN.shape[:-1], v_BHSN.shape[-1])
        q, k, v, out = (x.reshape(-1, *x.shape[-2:]) for x in (q_BHTN, k_BHSN, v_BHSN, out_BHTN))
        for start, stop, seen in _blocks(q.shape[1], k.shape[1], causal):
            p = _probabilities(q, k, mask, causal, start, stop, seen)
            torch.bmm(p, v[:, :seen], out=out[:, start:stop])
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal = causal
        return out_BHTN

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        heads = gradients[0].shape[:2]
        gradient = gradients[0].reshape(-1, *gradients[0].shape[-2:])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for start, stop, seen in _blocks(q.shape[1], k.shape[1], ctx.causal):
            p = _probabilities(q, k, mask, ctx.causal, start, stop, seen)
            g = gradient[:, start:stop]
            dv[:, :seen].baddbmm_(p.transpose(1, 2), g)
            dp = torch.bmm(g, v[:, :seen].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p * (dp - sum(p * dp))
            torch.bmm(ds, k[:, :seen], out=dq[:, start:stop])
            dk[:, :seen].baddbmm_(ds.transpose(1, 2), q[:, start:stop], alpha=scale)
        dq.mul_(scale)
        return (*(x.unflatten(0, heads) for x in (dq, dk, dv)), None, None)


def _blocks(num_queries: int, num_keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, query after the last, number of keys seen) of each block."""
    starts = range(0, num_queries, QUERIES_PER_BLOCK)
    stops = [min(start + QUERIES_PER_BLOCK, num_queries) for start in starts]
    return [(a, b, b if causal else num_keys) for a, b in zip(starts, stops, strict=True)]


def _probabilities(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, start: int, stop: int, seen: int
) -> Tensor:
    """(B*H, block, seen) attention probabilities of one block of queries; a query that sees nothing gets NaN."""
    bias = q.new_zeros(stop - start, seen)
    if causal:
        hidden = torch.ones(stop - start, seen, dtype=torch.bool, device=q.device).triu_(start + 1)
        bias.masked_fill_(hidden, float("-inf"))
    scores = torch.baddbmm(bias, q[:, start:stop], k[:, :seen].transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    if mask is not None:
        scores.view(mask.shape[0], -1, stop - start, seen).add_(mask[:, :, start:stop, :seen])
    return torch.softmax(scores, -1)


def block_attention(
    q_BHTN: Tensor, k_BHSN: Tensor, v_BHSN: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention of T queries over S keys, all heads: (B, H, T, N).

    `mask` (B, 1, T, S) is added to the scores. With `causal` (T equal to S), query t sees keys 0..t and of those what
    the mask allows.
    """
    result: Tensor = _BlockAttention.apply(q_BHTN, k_BHSN, v_BHSN, mask, causal)  # type: ignore[no-untyped-call]
    return result
