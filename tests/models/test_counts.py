"""Parameter and FLOP counts equal those of the built model, and of torch's own FLOP counter."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.samples import VARIANTS
from trivium.models import counts
from trivium.models.build import build_model
from trivium.models.config import ModelConfig


def random_config(seed: int) -> ModelConfig:
    """A valid config with every choice drawn at random."""
    pick = random.Random(seed)
    kind = pick.choice(["decoder", "encoder", "encoder-decoder"])
    placement = pick.choice(["pre", "post", "sandwich"])
    positions = pick.choice(["rotary", "learned", "sinusoidal", "relative", "alibi", "none"])
    head = pick.choice(["lm", "lm", "classification", "token_classification", "span", "scalar", "none"])
    heads, kv_groups = pick.choice([(4, 1), (4, 2), (6, 3), (6, 6)])
    return ModelConfig(
        vocab_size=pick.randint(2, 90),
        width=heads * 2 * pick.randint(1, 9),
        layers=pick.randint(1, 4),
        heads=heads,
        kv_heads=heads // kv_groups,
        head_width=pick.choice([0, 2, 14]),
        mlp_width=pick.choice([0, 37]),
        kind=kind,
        decoder_layers=pick.randint(0, 4) if kind == "encoder-decoder" else 0,
        norm=pick.choice(["rmsnorm", "rmsnorm_around_one", "layernorm", "layernorm_without_bias"]),
        norm_placement=placement,
        norm_first_attention=placement != "pre" or pick.random() < 0.5,
        qk_norm=pick.choice(["none", "head"]),
        residual="parallel"
        if placement == "pre" and kind != "encoder-decoder" and pick.random() < 0.3
        else "sequential",
        positions=positions,
        position_offset=pick.randint(0, 2) if positions == "learned" else 0,
        embedding_norm=pick.random() < 0.5,
        segment_types=0 if kind == "encoder-decoder" else pick.randint(0, 2),
        head=head,
        head_hidden=pick.choice(["none", "tanh", "relu", "activation", "activation_norm"]),
        head_hidden_bias=pick.random() < 0.5,
        head_bias=head != "none" and pick.random() < 0.5,
        labels=("a", "b", "c") if "classification" in head else (),
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


ONE_RESULT_A_TOKEN = ("lm", "token_classification", "span")


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.head in ONE_RESULT_A_TOKEN][:40], ids=str)
def test_flops_are_those_torch_counts(config: ModelConfig) -> None:
    B, T = 3, 16
    with torch.device("meta"):  # where attention is made of plain matrix products, which the counter knows
        model = build_model(config)
        ids = torch.zeros(B, T, dtype=torch.long)
        inputs = (ids, ids) if config.kind == "encoder-decoder" else (ids,)
        tokens = B * T * len(inputs)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(*inputs)
    assert forward.get_total_flops() == tokens * counts.flops_per_token(config, T)
    with FlopCounterMode(display=False) as training:
        model(*inputs).sum().backward()
    assert training.get_total_flops() == tokens * counts.training_flops_per_token(config, T)


def test_counts_of_a_published_model() -> None:
    """SmolLM2-135M: 134,515,008 parameters by its authors' files."""
    smollm2 = ModelConfig(vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536)
    assert counts.num_parameters(smollm2) == 134_515_008
