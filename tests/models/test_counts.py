"""Parameter and FLOP counts equal those of the built model, and of torch's own FLOP counter."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.samples import VARIANTS
from trivium.models import counts
from trivium.models.config import ModelConfig
from trivium.models.transformer import build_model


def random_config(seed: int) -> ModelConfig:
    """A valid config with every choice drawn at random."""
    pick = random.Random(seed)
    heads, kv_groups = pick.choice([(4, 1), (4, 2), (6, 3), (6, 6)])
    return ModelConfig(
        vocab_size=pick.randint(2, 90),
        width=heads * 2 * pick.randint(1, 9),
        layers=pick.randint(1, 4),
        heads=heads,
        kv_heads=heads // kv_groups,
        head_width=pick.choice([0, 2, 14]),
        mlp_width=pick.choice([0, 37]),
        norm=pick.choice(["rmsnorm", "layernorm"]),
        norm_placement=pick.choice(["pre", "post"]),
        positions=pick.choice(["rotary", "learned", "sinusoidal", "none"]),
        max_positions=pick.randint(16, 40),
        mlp=pick.choice(["gated", "plain"]),
        bias=pick.choice(["none", "qkv", "attention", "mlp", "all"]),
        tied_embeddings=pick.random() < 0.5,
    )


CONFIGS = [*VARIANTS.values(), *map(random_config, range(60))]


def counted_wrong(count: Callable[[ModelConfig], int]) -> int:
    """For how many configs `count` is not the number of parameters of the built model."""
    with torch.device("meta"):
        models = [build_model(config) for config in CONFIGS]
    return sum(
        count(config) != sum(parameter.numel() for parameter in model.parameters())
        for config, model in zip(CONFIGS, models, strict=True)
    )


def test_parameters_are_counted_exactly() -> None:
    assert counted_wrong(counts.num_parameters) == 0


def test_broken_control_a_forgotten_norm_is_seen() -> None:
    assert counted_wrong(lambda config: counts.num_parameters(config) - config.width) == len(CONFIGS)


def test_parameters_outside_tables_and_head() -> None:
    for config in CONFIGS:
        with torch.device("meta"):
            model = build_model(config)
        inside = sum(parameter.numel() for parameter in model.stack.parameters())
        assert counts.num_non_embedding_parameters(config) == inside


@pytest.mark.parametrize("config", CONFIGS[:20], ids=str)
def test_flops_are_those_torch_counts(config: ModelConfig) -> None:
    B, T = 3, 16
    with torch.device("meta"):  # where attention is made of plain matrix products, which the counter knows
        model = build_model(config)
        ids = torch.zeros(B, T, dtype=torch.long)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    assert forward.get_total_flops() == B * T * counts.flops_per_token(config, T)
    with FlopCounterMode(display=False) as training:
        model(ids).sum().backward()
    assert training.get_total_flops() == B * T * counts.training_flops_per_token(config, T)


def test_counts_of_a_published_model() -> None:
    """SmolLM2-135M: 134,515,008 parameters by its authors' files."""
    smollm2 = ModelConfig(vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536)
    assert counts.num_parameters(smollm2) == 134_515_008
