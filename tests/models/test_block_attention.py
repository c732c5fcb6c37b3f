"""Block attention equals torch's SDPA: values and gradients, for every kind of mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trivium.models import block_attention as module
from trivium.models.block_attention import block_attention


def inputs(queries: int, keys: int, dtype: torch.dtype, kv_heads: int = 6) -> list[Tensor]:
    """Queries, keys and values laid out as a model has them: (B, T, H, N) seen as (B, H, T, N)."""
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = [(2, queries, 6, 16), (2, keys, kv_heads, 16), (2, keys, kv_heads, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def documents_mask(batch: int, length: int) -> Tensor:
    segments = (torch.arange(length)[None] * 7 // (length + 1)) + torch.arange(batch)[:, None]
    return segments[:, :, None] == segments[:, None, :]


def results(qkv: list[Tensor], kind: str, blocks: bool) -> list[Tensor]:
    """The output and the three gradients, by blocks or by SDPA."""
    queries, keys, dtype = qkv[0].shape[2], qkv[1].shape[2], qkv[0].dtype
    mask = documents_mask(2, queries)[:, None] if "documents" in kind else None
    causal = "causal" in kind
    if blocks:
        added = None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
        out = block_attention(*qkv, mask=added, causal=causal)
    else:
        whole = torch.ones(queries, keys, dtype=torch.bool)
        seen = (whole.tril() if causal else whole) & (True if mask is None else mask)
        out = scaled_dot_product_attention(*qkv, attn_mask=seen, enable_gqa=True)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, qkv, weight)]


def difference(kind: str, queries: int, keys: int, dtype: torch.dtype, kv_heads: int = 6) -> float:
    """Largest difference to SDPA among the output and the three gradients."""
    qkv = inputs(queries, keys, dtype, kv_heads)
    pairs = zip(results(qkv, kind, True), results(qkv, kind, False), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "causal documents", "bidirectional documents"])
@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
def test_equals_sdpa(kind: str, length: int) -> None:
    assert difference(kind, length, length, torch.float64) < 1e-12
    assert difference(kind, length, length, torch.float32) < 2e-5


def test_cross_attention_with_other_length_of_keys() -> None:
    assert difference("bidirectional", 150, 40, torch.float64) < 1e-12


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_grouped_heads(kv_heads: int) -> None:
    assert difference("causal documents", 150, 150, torch.float64, kv_heads) < 1e-12


@pytest.mark.parametrize("kind", ["causal", "causal documents"])
def test_in_bf16_the_error_is_that_of_bf16(kind: str) -> None:
    """Relative to fp64: at most four units in the last place of bf16 (2^-9), in the mean."""
    qkv = inputs(300, 300, torch.bfloat16)
    exact = results([x.detach().double().requires_grad_() for x in qkv], kind, False)
    for found, expected in zip(results(qkv, kind, True), exact, strict=True):
        assert (found.double() - expected).norm() / expected.norm() < 4 * 2**-9


def test_broken_control_a_triangle_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._blocks

    def wrong(num_queries: int, num_keys: int, causal: bool) -> list[tuple[int, int, int]]:
        return [(a, b, max(1, seen - 1) if causal else seen) for a, b, seen in right(num_queries, num_keys, causal)]

    monkeypatch.setattr(module, "_blocks", wrong)
    assert difference("causal", 129, 129, torch.float64) > 1e-3
