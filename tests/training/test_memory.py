"""Measured memory follows what is really held."""

from __future__ import annotations

import pytest
import torch

from trivium.training.memory import current_bytes, is_out_of_memory, peak_bytes

CPU = torch.device("cpu")


def test_a_large_tensor_shows() -> None:
    before = current_bytes(CPU)
    tensor = torch.ones(24 << 20)
    assert current_bytes(CPU) - before == pytest.approx(tensor.nbytes, rel=0.1)
    assert peak_bytes(CPU) >= before + tensor.nbytes * 0.9


def test_a_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60)
    assert is_out_of_memory(failed.value)
    with pytest.raises(RuntimeError) as failed:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(failed.value)
