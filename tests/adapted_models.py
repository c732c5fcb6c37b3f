"""Small models of the three kinds with random weights, and adapters with weights that matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.peft.apply import Adapter
from trivium.peft.settings import (
    DoraSettings,
    HoulsbySettings,
    IA3Settings,
    LoraSettings,
    ParallelSettings,
    PeftSettings,
    PfeifferSettings,
    RsLoraSettings,
)

CONFIGS: dict[str, ModelConfig] = {
    "llama": ModelConfig(vocab_size=53, width=32, layers=2, heads=4, kv_heads=2, mlp_width=56),
    "gpt2": ModelConfig(
        vocab_size=53,
        width=32,
        layers=3,
        heads=4,
        norm="layernorm",
        mlp="plain",
        bias="all",
        positions="learned",
        max_positions=64,
        activation="gelu",
    ),
    "bert": ModelConfig(
        kind="encoder",
        vocab_size=53,
        width=32,
        layers=2,
        heads=4,
        norm="layernorm",
        norm_placement="post",
        mlp="plain",
        bias="all",
        positions="learned",
        max_positions=64,
        activation="gelu",
        embedding_norm=True,
    ),
    "t5": ModelConfig(
        kind="encoder-decoder",
        vocab_size=53,
        width=32,
        layers=2,
        decoder_layers=2,
        heads=4,
        positions="relative",
        mlp="plain",
        activation="relu",
    ),
}
# One of each method that adds modules.
ADDING: dict[str, PeftSettings] = {
    "lora": LoraSettings(rank=4),
    "rslora": RsLoraSettings(rank=4, targets=("query", "value", "down")),
    "dora": DoraSettings(rank=4, alpha=6),
    "ia3": IA3Settings(),
    "houlsby": HoulsbySettings(bottleneck=6, activation="relu"),
    "pfeiffer": PfeifferSettings(bottleneck=6, activation="silu"),
    "parallel": ParallelSettings(bottleneck=6, scale=4, activation="tanh"),
}


def made(name: str, seed: int = 0, **changes: object) -> Model:
    """A model with biases and norms moved away from 0 and 1, in evaluation mode."""
    config = CONFIGS[name].changed(**changes)
    model = build_model(config)
    initialise(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def inputs(model: Model) -> tuple[Tensor, ...]:
    """(ids,), or (source, target)."""
    ids = torch.randint(0, 53, (2, 9), generator=torch.Generator().manual_seed(1))
    return (ids, ids[:, :7]) if model.config.kind == "encoder-decoder" else (ids,)


def shake(adapter: Adapter, model: nn.Module, seed: int = 5, by: float = 0.2) -> None:
    """Move all weights of an adapter away from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=by)


def described(model: nn.Module) -> tuple[list[tuple[str, type]], dict[str, Tensor], dict[str, bool]]:
    """Modules with their types, tensors, and what is trainable, by name."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, tensors, {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def same(before: tuple[object, dict[str, Tensor], object], after: tuple[object, dict[str, Tensor], object]) -> bool:
    """Whether two descriptions agree, tensors to the bit."""
    tensors, others = before[1], after[1]
    equal = list(tensors) == list(others) and all(torch.equal(tensors[name], others[name]) for name in tensors)
    return before[0] == after[0] and before[2] == after[2] and equal
