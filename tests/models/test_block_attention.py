"""Block attention equals torch's SDPA: values and gradients, for every kind of mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trivium.models import block_attention as module
from trivium.models.block_attention import block_attention


def inputs(batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = [(batch, heads, n, 16) for n in (queries, keys, keys)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def documents_mask(batch: int, length: int) -> Tensor:
    segments = (torch.arange(length)[None] * 7 // (length + 1)) + torch.arange(batch)[:, None]
    return segments[:, :, None] == segments[:, None, :]


def difference(kind: str, queries: int, keys: int, dtype: torch.dtype) -> float:
    """Largest difference to SDPA among the output and the three gradients."""
    qkv = inputs(2, 3, queries, keys, dtype)
    mask = documents_mask(2, queries) if "documents" in kind else None
    causal = "causal" in kind
    whole = torch.ones(queries, keys, dtype=torch.bool)
    reference_mask = (whole.tril() if causal else whole)[None, None] & (True if mask is None else mask[:, None])
    expected = scaled_dot_product_attention(*qkv, attn_mask=reference_mask)
    added = None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)[:, None]
    found = block_attention(*qkv, mask=added, causal=causal)
    weight = torch.randn(found.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        (expected, *torch.autograd.grad(expected, qkv, weight)),
        (found, *torch.autograd.grad(found, qkv, weight)),
        strict=True,
    )
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "causal documents", "bidirectional documents"])
@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
def test_equals_sdpa(kind: str, length: int) -> None:
    assert difference(kind, length, length, torch.float64) < 1e-12
    assert difference(kind, length, length, torch.float32) < 2e-5


def test_cross_attention_with_other_length_of_keys() -> None:
    assert difference("bidirectional", 150, 40, torch.float64) < 1e-12


def test_broken_control_a_triangle_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._blocks

    def wrong(num_queries: int, num_keys: int, causal: bool) -> list[tuple[int, int, int]]:
        return [(a, b, max(1, seen - 1) if causal else seen) for a, b, seen in right(num_queries, num_keys, causal)]

    monkeypatch.setattr(module, "_blocks", wrong)
    assert difference("causal", 129, 129, torch.float64) > 1e-3
