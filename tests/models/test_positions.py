"""Positions against closed forms: complex numbers for rotary, a loop for sinusoids and segments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trivium.models.config import ModelConfig
from trivium.models.positions import Rotation, positions_in_segments, rotate, rotation, sinusoids


def rotary(head_width: int, theta: float) -> ModelConfig:
    """A model whose heads are `head_width` wide."""
    return ModelConfig(vocab_size=9, width=head_width, layers=1, heads=1, rope_theta=theta)


def turned_by_complex_numbers(x_BTHN: Tensor, theta: float) -> Tensor:
    """Each pair (i, i + N/2) as a complex number times e^(i position theta^(-2i/N)), in fp64."""
    half = x_BTHN.shape[-1] // 2
    z = torch.complex(x_BTHN[..., :half].double(), x_BTHN[..., half:].double())
    for i in range(half):
        for t in range(x_BTHN.shape[1]):
            angle = t * theta ** (-2 * i / (2 * half))
            z[:, t, :, i] *= complex(math.cos(angle), math.sin(angle))
    return torch.cat((z.real, z.imag), -1)


def test_rotation_is_multiplication_of_complex_numbers() -> None:
    x = torch.randn(2, 50, 3, 8, generator=torch.Generator().manual_seed(0))
    turn = rotation(torch.arange(50), rotary(8, 500.0), torch.float32)
    assert (rotate(x, turn) - turned_by_complex_numbers(x, 500.0)).abs().max() < 1e-5


def test_scores_depend_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> float:
        turns = [rotation(torch.tensor([at]), rotary(16, 10_000.0), torch.float64) for at in (query_at, key_at)]
        return float((rotate(q, turns[0]) * rotate(k, turns[1])).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_broken_control_interleaved_pairs_are_seen() -> None:
    """Pairing neighbours, as the paper does, is another layout: the closed form must tell them apart."""
    x = torch.randn(1, 9, 1, 8, generator=torch.Generator().manual_seed(0))
    turn = rotation(torch.arange(9), rotary(8, 500.0), torch.float32)
    mixed = x.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)
    wrong = rotate(mixed, Rotation(*turn)).unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)
    assert (wrong - turned_by_complex_numbers(x, 500.0)).abs().max() > 0.1


def test_sinusoids_are_the_formula_of_the_paper() -> None:
    width, at = 8, 37
    found = sinusoids(torch.tensor([at]), width)[0]
    for i in range(width // 2):
        angle = at / 10_000 ** (2 * i / width)
        assert float(found[i]) == pytest.approx(math.sin(angle), abs=1e-5)
        assert float(found[width // 2 + i]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_positions_restart_at_each_segment() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5, 5, 5]])
    expected = [[0, 1, 2, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert positions_in_segments(segments).tolist() == expected
