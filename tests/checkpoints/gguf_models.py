"""A small model of each architecture of GGUF files, with nothing in it left at its initial 0 or 1."""

from __future__ import annotations

from functools import cache

import torch

from trivium.families import FAMILIES
from trivium.models.build import Model, build_model
from trivium.models.config import ModelConfig
from trivium.models.rope_scaling import RopeScaling
from trivium.tokenizer.bpe import Tokenizer

TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
    "def mean(values):\n    return sum(values) / len(values)\n\n# naïve café, 日本語, 🙂 12345\n"
)
LLAMA3 = RopeScaling(method="llama3", factor=8.0, original_max_positions=8192)
YARN = RopeScaling(method="yarn", factor=4.0, original_max_positions=32, attention_factor=1.3)
GEMMA = {"sliding_window": 8, "embedding_scale": 8.0, "heads": 2, "head_width": 256, "kv_heads": 1}
# Name: (family, what differs from its usual shape). Widths are multiples of 32, so that all can be quantized.
SHAPES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {"kv_heads": 2}),
    "llama-untied-biased": ("llama", {"tied_embeddings": False, "bias": "all", "head_width": 32}),
    "llama-3": ("llama", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3, "heads": 2}),
    "llama-linear": ("llama", {"rope_scaling": RopeScaling(method="linear", factor=4.0)}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "qwen2": ("qwen2", {"kv_heads": 2, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"heads": 2, "head_width": 128, "tied_embeddings": False}),
    "gemma2": ("gemma2", {**GEMMA, "layers": 3, "full_attention_layers": (1,)}),
    "gemma3": ("gemma3_text", {**GEMMA, "layers": 7, "full_attention_layers": (5,)}),
    "gpt2": ("gpt2", {"max_positions": 1024}),
}


@cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE as pretraining learns it."""
    return Tokenizer.train(texts=[TEXT * 20], vocab_size=300)


def config_of(name: str) -> ModelConfig:
    """The config of one of SHAPES; its embeddings are a few more than the tokenizer's entries."""
    family, changes = SHAPES[name]
    base = {"vocab_size": 320, "width": 64, "layers": 2, "heads": 4, "max_positions": 128}
    return ModelConfig(**{**base, **FAMILIES[family].shape, **changes})


def model_of(config: ModelConfig, seed: int = 0) -> Model:
    """A model whose every parameter is drawn: matrices, norms and biases, so that each has its part in the result."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config).eval()
    centre = 0.0 if config.norm == "rmsnorm_around_one" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(centre + 0.2 * draw if name.endswith("norm.weight") else 0.2 * draw)
            if name in ("embedding.weight", "head.output.weight"):
                parameter[tokenizer().vocab_size :] = 0.0  # never the likeliest: no token of the tokenizer
    return model


def some_ids(config: ModelConfig, length: int = 40) -> list[int]:
    """Ids of a text that is none."""
    return torch.randint(4, 300, (length,), generator=torch.Generator().manual_seed(7)).tolist()
