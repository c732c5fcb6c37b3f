"""Models of every kind of block, and text for them, for the tests of calibration, GPTQ, AWQ and their errors."""

from __future__ import annotations

import torch
from torch import Tensor

from models.samples import VARIANTS
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.quantization.calibration import Batch

# Blocks of every kind: the variants of decoders, and the two other kinds of model.
CONFIGS: dict[str, ModelConfig] = {
    **VARIANTS,
    "sandwich layernorm without bias": VARIANTS["llama"].changed(
        norm="layernorm_without_bias", norm_placement="sandwich"
    ),
    "first attention without norm": VARIANTS["llama"].changed(kind="encoder", norm_first_attention=False),
    "encoder, post-norm": VARIANTS["post-norm, sinusoidal, relu"].changed(kind="encoder"),
    "encoder-decoder": VARIANTS["layernorm, learned, plain gelu, biases"].changed(
        kind="encoder-decoder", activation="relu", kv_heads=2
    ),
}


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> Model:
    """A model whose every part matters, with inputs of very different size among its channels."""
    model = build_model(config)
    initialise(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter[:2] *= 10
    return model.to(dtype).eval()


def text_of(config: ModelConfig, batches: int = 3, rows: int = 2, tokens: int = 24, seed: int = 0) -> list[Batch]:
    """Random ids in the form the model takes."""
    generator = torch.Generator().manual_seed(seed)

    def ids() -> Tensor:
        # Squared, so that some ids are common and most are rare, as in text.
        return (torch.rand(rows, tokens, generator=generator).square() * config.vocab_size).long()

    return [(ids(), ids()) if config.kind == "encoder-decoder" else ids() for _ in range(batches)]


def results(model: Model, batches: list[Batch]) -> Tensor:
    """The logits of all of the text."""
    with torch.no_grad():
        return torch.cat([model(batch) if isinstance(batch, Tensor) else model(*batch) for batch in batches])
