"""Narrowed ranges: no group's share of the error grows, and outliers are cut where that pays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trivium.quantization import ranges
from trivium.quantization.packing import pack, unpack
from trivium.quantization.ranges import narrowed
from trivium.quantization.schemes import Layout


@pytest.mark.parametrize("kind", ["int4", "int4_asymmetric"])
def test_narrowing_lowers_each_group_s_share(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 128, generator=generator) * (torch.rand(128, generator=generator) * 3)
    gram = x.t() @ x
    weight = torch.randn(64, 128, generator=generator) ** 3  # long tails: a smaller range pays
    how = Layout(kind, 64, False)
    cut = narrowed(weight, gram, how)

    def share(values: Tensor) -> Tensor:
        """(O, 2): each group's part of the error."""
        difference = unpack(pack(values, how)) - weight
        parts = [(difference[:, part] @ x.t()[part]).square().sum(1) for part in (slice(0, 64), slice(64, 128))]
        return torch.stack(parts, 1)

    assert bool((share(cut) <= share(weight) * (1 + 1e-4)).all())
    assert float(share(cut).sum()) < 0.95 * float(share(weight).sum())
    assert bool((cut.abs() <= weight.abs()).all())
    monkeypatch.setattr(ranges, "NUMBERS_AT_A_TIME", 128 * 7)  # a few rows at a time
    assert torch.allclose(narrowed(weight, gram, how), cut)
    # Broken control: groups judged by each other's inputs.
    swapped = narrowed(weight, gram.roll((64, 64), (0, 1)), how)
    assert float(share(swapped).sum()) > float(share(cut).sum())
