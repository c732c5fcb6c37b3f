"""Cross-entropy of a vocabulary projection without ever holding all logits.

The logits of N positions over V ids are the largest tensor of a small model (N V floats, and as many again for their
gradient). Here they exist for one chunk of positions at a time: the forward pass computes a chunk's logits, its loss
and at once the gradients with respect to hidden states and weight, so that backward only scales them. Three matrix
products in total, as many as the plain way needs. Inside a chunk the softmax runs in fp32 over small blocks
that stay in the processor's cache. Positions whose target is `IGNORED` are left out before the first product.

For the row h_n with target t_n and weight W: loss_n = logsumexp(W h_n) - (W h_n)[t_n], and with g_n = softmax(W h_n) -
onehot(t_n): dloss/dh_n = W^T g_n, dloss/dW = sum_n g_n h_n^T.

Departs from calling `F.cross_entropy` on logits only in rounding: the weight's gradient is summed over chunks in fp32
where autocast would round it to 16 bits once. Invariants its test checks: equal to `F.cross_entropy` in fp64 to 1e-12
with both gradients; no tensor as large as N V fp32 numbers is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivium.data.batch import IGNORED

# A chunk's logits take about this much memory: large enough for full-speed matrix products, small beside a model.
LOGITS_BYTES = 32 << 20
# The fp32 softmax works on blocks of about this size, which stay in a core's L2 cache or close to it.
SOFTMAX_BYTES = 2 << 20
# Fewer rows than this make slow matrix products, however large the vocabulary.
MIN_CHUNK_TOKENS = 256
# In fp16 a weight's gradient is summed over at most so many rows before it is added in fp32, against overflow.
MAX_FP16_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class CrossEntropy:
    """A loss not yet averaged."""

    sum: Tensor
    """() fp32 (fp64 for fp64 inputs): the loss over `count` targets, in nats; differentiable."""
    count: int
    """How many targets were not `IGNORED`."""
    correct: Tensor | None
    """() int64: at how many of them the likeliest id was the target; None unless asked for."""


def chunked_cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    chunk_tokens: int = 0,
    want_correct: bool = False,
) -> CrossEntropy:
    """Summed cross-entropy of softmax(hidden W^T) against `targets_BT` (int64 ids, or `IGNORED`).

    Any leading shape will do in place of (B, T). Under autocast the products run in its dtype, otherwise in the dtype
    of `hidden_BTD`. `chunk_tokens`: positions per chunk, 0 chooses. Backward can be called once.
    """
    hidden_ND, targets_N = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), targets_BT.reshape(-1)
    mask_N = targets_N != IGNORED
    count = int(mask_N.sum())
    learned_N = None if count == targets_N.numel() else mask_N
    dtype = _product_dtype(hidden_ND)
    chunk = chunk_tokens or _chunk_tokens(weight_VD.shape[0], dtype)
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad):
        total, correct = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, targets_N, learned_N, dtype, chunk, want_correct
        )
    else:
        rows_ND, weight, targets = _prepared(hidden_ND, weight_VD, targets_N, learned_N, dtype)
        result = _over_chunks(rows_ND, weight, targets, chunk, want_correct, False, False)
        total, correct = result.total, result.correct
    return CrossEntropy(total, count, correct if want_correct else None)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `hidden` would run in: autocast leaves fp64 alone."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _chunk_tokens(vocabulary: int, dtype: torch.dtype) -> int:
    chunk = max(MIN_CHUNK_TOKENS, LOGITS_BYTES // (vocabulary * dtype.itemsize))
    return min(chunk, MAX_FP16_CHUNK_TOKENS) if dtype == torch.float16 else chunk


def _prepared(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, learned_N: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are learned, the weight, both in the products' dtype, and the rows' targets."""
    if learned_N is not None:
        hidden_ND, targets_N = hidden_ND[learned_N], targets_N[learned_N]
    return hidden_ND.detach().to(dtype).contiguous(), weight_VD.detach().to(dtype), targets_N


@dataclass(frozen=True)
class _Result:
    """What one pass over the chunks leaves."""

    total: Tensor
    correct: Tensor
    grad_hidden_ND: Tensor | None
    grad_weight_VD: Tensor | None


def _over_chunks(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk: int,
    want_correct: bool,
    want_hidden: bool,
    want_weight: bool,
) -> _Result:
    """Loss and gradients, chunk by chunk. Every buffer is allocated once: fresh pages are what costs on a CPU."""
    rows, vocabulary, dtype = hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.dtype
    sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    total, correct = hidden_ND.new_zeros((), dtype=sum_dtype), hidden_ND.new_zeros((), dtype=torch.int64)
    grad_hidden_ND = torch.empty_like(hidden_ND) if want_hidden else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_dtype) if want_weight else None
    logits_CV = hidden_ND.new_empty((min(chunk, rows), vocabulary))
    in_cache = SOFTMAX_BYTES // (vocabulary * sum_dtype.itemsize) if hidden_ND.device.type == "cpu" else chunk
    block = max(1, min(in_cache, chunk, rows))
    scratch_SV = None if dtype == sum_dtype else hidden_ND.new_empty((block, vocabulary), dtype=sum_dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, rows, chunk):
            part_CD, targets_C = hidden_ND[start : start + chunk], targets_N[start : start + chunk]
            part_CV = torch.mm(part_CD, weight_VD.t(), out=logits_CV[: len(targets_C)])
            for block_SV, targets_S in zip(torch.split(part_CV, block), torch.split(targets_C, block), strict=True):
                loss, probabilities_SV = _softmax(block_SV, targets_S, scratch_SV)
                total += loss
                if want_correct:
                    correct += (probabilities_SV.argmax(-1) == targets_S).sum()
                if want_hidden or want_weight:
                    _gradient_of_logits(probabilities_SV, targets_S, block_SV)
            if grad_hidden_ND is not None:
                torch.mm(part_CV, weight_VD, out=grad_hidden_ND[start : start + chunk])
            if grad_weight_VD is not None and dtype == sum_dtype:
                grad_weight_VD.addmm_(part_CV.t(), part_CD)
            elif grad_weight_VD is not None:
                grad_weight_VD += torch.mm(part_CV.t(), part_CD)
    return _Result(total, correct, grad_hidden_ND, grad_weight_VD)


def _softmax(logits_SV: Tensor, targets_S: Tensor, scratch_SV: Tensor | None) -> tuple[Tensor, Tensor]:
    """Summed loss and probabilities; these replace the logits where they are precise enough, else lie in `scratch_SV`.

    With m the largest logit and p its probability, logsumexp = m - log p. This costs one exponential per element, the
    one inside torch's softmax; and p is at least 1/V, so that its logarithm is never far off.
    """
    if scratch_SV is not None:
        logits_SV = scratch_SV[: logits_SV.shape[0]].copy_(logits_SV)
    wanted_S = logits_SV.gather(1, targets_S[:, None]).squeeze(1)
    largest_S = logits_SV.amax(-1)
    torch.softmax(logits_SV, dim=-1, out=logits_SV)
    return (largest_S - logits_SV.amax(-1).log() - wanted_S).sum(), logits_SV


def _gradient_of_logits(probabilities_SV: Tensor, targets_S: Tensor, out_SV: Tensor) -> None:
    """softmax - onehot, written to `out_SV` (which may be `probabilities_SV` itself)."""
    minus_one = probabilities_SV.new_full((len(targets_S), 1), -1.0)
    probabilities_SV.scatter_add_(1, targets_S[:, None], minus_one)
    if out_SV.dtype != probabilities_SV.dtype:
        out_SV.copy_(probabilities_SV)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are ready when the loss is; backward multiplies them by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        learned_N: Tensor | None,
        dtype: torch.dtype,
        chunk: int,
        want_correct: bool,
    ) -> tuple[Tensor, Tensor]:
        rows_ND, weight, targets = _prepared(hidden_ND, weight_VD, targets_N, learned_N, dtype)
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        result = _over_chunks(rows_ND, weight, targets, chunk, want_correct, want_hidden, want_weight)
        ctx.gradients = (result.grad_hidden_ND, result.grad_weight_VD)
        ctx.learned_N, ctx.hidden_dtype, ctx.weight_dtype = learned_N, hidden_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(result.correct)
        return result.total, result.correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy: backward can be called once, its gradients are spent")
        (hidden, weight), ctx.gradients = ctx.gradients, None
        scale = grad_outputs[0]
        if hidden is not None:
            hidden = hidden.mul_(scale).to(ctx.hidden_dtype)
            if ctx.learned_N is not None:
                everywhere = hidden.new_zeros((len(ctx.learned_N), hidden.shape[1]))
                everywhere[ctx.learned_N] = hidden
                hidden = everywhere
        if weight is not None:
            weight = weight.mul_(scale).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None, None
