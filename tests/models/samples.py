"""Small models of every kind, and the questions several tests ask of them."""

from __future__ import annotations

import torch
from torch import Tensor

from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.rope_scaling import RopeScaling

BASE = ModelConfig(vocab_size=61, width=32, layers=2, heads=4, max_positions=1024, init_std=0.3)

# One config for each choice of norm, its place, positions, MLP, bias, grouping and tying.
VARIANTS: dict[str, ModelConfig] = {
    "llama": BASE.changed(kv_heads=2),
    "multi-query, untied": BASE.changed(kv_heads=1, tied_embeddings=False),
    "layernorm, learned, plain gelu, biases": BASE.changed(
        norm="layernorm", positions="learned", mlp="plain", activation="gelu_tanh", bias="all"
    ),
    "post-norm, sinusoidal, relu": BASE.changed(
        norm="layernorm", norm_placement="post", positions="sinusoidal", mlp="plain", activation="relu", bias="all"
    ),
    "post-norm rmsnorm, rotary, qkv bias": BASE.changed(norm_placement="post", bias="qkv", kv_heads=2),
    "no positions, gelu": BASE.changed(positions="none", activation="gelu", head_width=10),
    "alibi, embedding norm": BASE.changed(positions="alibi", norm="layernorm", embedding_norm=True, heads=4),
    "relative, scale 1": BASE.changed(positions="relative", attention_scale=1.0, logit_scale=0.2, relative_buckets=8),
    "parallel, part of a head rotated": BASE.changed(residual="parallel", norm="layernorm", rope_share=0.5, bias="all"),
    "windows, sandwich, caps, qk-norm": BASE.changed(
        norm="rmsnorm_around_one",
        norm_placement="sandwich",
        layers=3,
        sliding_window=5,
        full_attention_layers=(1,),
        local_rope_theta=100.0,
        attention_softcap=3.0,
        logit_softcap=4.0,
        qk_norm="head",
        embedding_scale=5.0,
        kv_heads=2,
    ),
    "window in every layer, yarn": BASE.changed(
        sliding_window=9,
        kv_heads=1,
        rope_scaling=RopeScaling(method="yarn", factor=4.0, original_max_positions=16),
    ),
}


def small_model(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> Decoder:
    """A model with weights large enough that every part of it matters; biases and norms are not left at 0 and 1."""
    model = build_model(config)
    initialise(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.to(dtype).eval()


def random_ids(config: ModelConfig, *shape: int, seed: int = 0) -> Tensor:
    """Token ids of the given shape."""
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
