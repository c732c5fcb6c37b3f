"""Cross-entropy of a vocabulary projection without ever holding all logits.

The logits of N positions over V ids are the largest tensor of a small model (N V floats, and as many again for their
gradient). Here they exist for one chunk of positions at a time: the forward pass computes a chunk's logits, its loss
and at once the gradients with respect to hidden states and weight, so that backward only scales them. Three matrix
products in total, as many as the plain way needs. Inside a chunk the softmax runs in fp32 over small blocks
that stay in the processor's cache. Positions whose target is `IGNORED` are left out before the first product.

For the row h_n with target t_n, weight W and logits z_n = W h_n + b: loss_n = logsumexp(z_n) - z_n[t_n], and with g_n =
softmax(z_n) - onehot(t_n): dloss/dh_n = W^T g_n, dloss/dW = sum_n g_n h_n^T, dloss/db = sum_n g_n. Capped logits
c tanh(z / c) (Gemma 2) multiply g_n by 1 - tanh(z / c)^2; smoothed labels (Szegedy et al., 2016) put (1 - e) onehot(t)
+ e / V in the place of onehot(t).

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
    bias_V: Tensor | None = None,
    softcap: float = 0.0,
    *,
    label_smoothing: float = 0.0,
    chunk_tokens: int = 0,
    want_correct: bool = False,
) -> CrossEntropy:
    """Summed cross-entropy of softmax(cap(hidden W^T + bias)) against `targets_BT` (int64 ids, or `IGNORED`).

    Any leading shape will do in place of (B, T); (hidden, weight, bias, softcap) is what `Projection` holds. Under
    autocast the products run in its dtype, otherwise in the dtype of `hidden_BTD`. `label_smoothing`: the share of each
    target that is spread over all ids. `chunk_tokens`: positions per chunk, 0 chooses. Backward can be called once.
    """
    hidden_ND, targets_N = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), targets_BT.reshape(-1)
    mask_N = targets_N != IGNORED
    count = int(mask_N.sum())
    learned_N = None if count == targets_N.numel() else mask_N
    dtype = _product_dtype(hidden_ND)
    chunk = chunk_tokens or _chunk_tokens(weight_VD.shape[0], dtype)
    how = _How(None if bias_V is None else bias_V.detach().to(dtype), softcap, label_smoothing, chunk, want_correct)
    learns = any(x is not None and x.requires_grad for x in (hidden_ND, weight_VD, bias_V))
    if torch.is_grad_enabled() and learns:
        total, correct = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, bias_V, targets_N, learned_N, dtype, how
        )
    else:
        rows_ND, weight, targets = _prepared(hidden_ND, weight_VD, targets_N, learned_N, dtype)
        result = _over_chunks(rows_ND, weight, targets, how, (False, False, False))
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
class _How:
    """What else makes up the loss."""

    bias_V: Tensor | None
    softcap: float
    smoothing: float
    chunk: int
    want_correct: bool

    def finish_logits_(self, logits_SV: Tensor) -> Tensor | None:
        """Cap the logits in place; returns the slope of the cap there, None without one."""
        if not self.softcap:
            return None
        tanh_SV = logits_SV.div_(self.softcap).tanh_()
        slope_SV = 1 - tanh_SV.square()
        logits_SV.mul_(self.softcap)
        return slope_SV


@dataclass(frozen=True)
class _Result:
    """What one pass over the chunks leaves."""

    total: Tensor
    correct: Tensor
    grad_hidden_ND: Tensor | None
    grad_weight_VD: Tensor | None
    grad_bias_V: Tensor | None


def _over_chunks(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, how: _How, wanted: tuple[bool, bool, bool]
) -> _Result:
    """Loss and the gradients `wanted` (of hidden states, weight, bias), chunk by chunk.

    Every buffer is allocated once: fresh pages are what costs on a CPU.
    """
    want_hidden, want_weight, want_bias = wanted
    chunk, rows, vocabulary, dtype = how.chunk, hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.dtype
    sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    total, correct = hidden_ND.new_zeros((), dtype=sum_dtype), hidden_ND.new_zeros((), dtype=torch.int64)
    grad_hidden_ND = torch.empty_like(hidden_ND) if want_hidden else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=sum_dtype) if want_weight else None
    grad_bias_V = weight_VD.new_zeros(vocabulary, dtype=sum_dtype) if want_bias else None
    logits_CV = hidden_ND.new_empty((min(chunk, rows), vocabulary))
    in_cache = SOFTMAX_BYTES // (vocabulary * sum_dtype.itemsize) if hidden_ND.device.type == "cpu" else chunk
    block = max(1, min(in_cache, chunk, rows))
    scratch_SV = None if dtype == sum_dtype else hidden_ND.new_empty((block, vocabulary), dtype=sum_dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, rows, chunk):
            part_CD, targets_C = hidden_ND[start : start + chunk], targets_N[start : start + chunk]
            part_CV = torch.mm(part_CD, weight_VD.t(), out=logits_CV[: len(targets_C)])
            if how.bias_V is not None:
                part_CV += how.bias_V
            for block_SV, targets_S in zip(torch.split(part_CV, block), torch.split(targets_C, block), strict=True):
                slope_SV = how.finish_logits_(block_SV)
                loss, probabilities_SV = _softmax(block_SV, targets_S, scratch_SV, how.smoothing)
                total += loss
                if how.want_correct:
                    correct += (probabilities_SV.argmax(-1) == targets_S).sum()
                if any(wanted):
                    _gradient_of_logits(probabilities_SV, targets_S, block_SV, how.smoothing)
                    if slope_SV is not None:
                        block_SV *= slope_SV
            if grad_bias_V is not None:
                grad_bias_V += part_CV.sum(0, dtype=sum_dtype)
            if grad_hidden_ND is not None:
                torch.mm(part_CV, weight_VD, out=grad_hidden_ND[start : start + chunk])
            if grad_weight_VD is not None and dtype == sum_dtype:
                grad_weight_VD.addmm_(part_CV.t(), part_CD)
            elif grad_weight_VD is not None:
                grad_weight_VD += torch.mm(part_CV.t(), part_CD)
    return _Result(total, correct, grad_hidden_ND, grad_weight_VD, grad_bias_V)


def _softmax(
    logits_SV: Tensor, targets_S: Tensor, scratch_SV: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Summed loss and probabilities; these replace the logits where they are precise enough, else lie in `scratch_SV`.

    With m the largest logit and p its probability, logsumexp = m - log p. This costs one exponential per element, the
    one inside torch's softmax; and p is at least 1/V, so that its logarithm is never far off.
    """
    if scratch_SV is not None:
        logits_SV = scratch_SV[: logits_SV.shape[0]].copy_(logits_SV)
    wanted_S = logits_SV.gather(1, targets_S[:, None]).squeeze(1)
    if smoothing:
        wanted_S = (1 - smoothing) * wanted_S + smoothing * logits_SV.mean(-1)
    largest_S = logits_SV.amax(-1)
    torch.softmax(logits_SV, dim=-1, out=logits_SV)
    return (largest_S - logits_SV.amax(-1).log() - wanted_S).sum(), logits_SV


def _gradient_of_logits(probabilities_SV: Tensor, targets_S: Tensor, out_SV: Tensor, smoothing: float) -> None:
    """softmax minus the target distribution, written to `out_SV` (which may be `probabilities_SV` itself)."""
    minus_one = probabilities_SV.new_full((len(targets_S), 1), smoothing - 1.0)
    probabilities_SV.scatter_add_(1, targets_S[:, None], minus_one)
    if smoothing:
        probabilities_SV -= smoothing / probabilities_SV.shape[1]
    if out_SV.dtype != probabilities_SV.dtype:
        out_SV.copy_(probabilities_SV)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are ready when the loss is; backward multiplies them by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        learned_N: Tensor | None,
        dtype: torch.dtype,
        how: _How,
    ) -> tuple[Tensor, Tensor]:
        rows_ND, weight, targets = _prepared(hidden_ND, weight_VD, targets_N, learned_N, dtype)
        result = _over_chunks(rows_ND, weight, targets, how, ctx.needs_input_grad[:3])
        ctx.gradients = (result.grad_hidden_ND, result.grad_weight_VD, result.grad_bias_V)
        ctx.learned_N, ctx.hidden_dtype, ctx.weight_dtype = learned_N, hidden_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(result.correct)
        return result.total, result.correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy: backward can be called once, its gradients are spent")
        (hidden, weight, bias), ctx.gradients = ctx.gradients, None
        scale = grad_outputs[0]
        if hidden is not None:
            hidden = hidden.mul_(scale).to(ctx.hidden_dtype)
            if ctx.learned_N is not None:
                everywhere = hidden.new_zeros((len(ctx.learned_N), hidden.shape[1]))
                everywhere[ctx.learned_N] = hidden
                hidden = everywhere
        if weight is not None:
            weight = weight.mul_(scale).to(ctx.weight_dtype)
        if bias is not None:
            bias = bias.mul_(scale).to(ctx.weight_dtype)
        return hidden, weight, bias, None, None, None, None
