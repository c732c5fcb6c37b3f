"""What each method trains, by hand and on built models; what frozen weights leave to be kept, by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.planner.activations import kept_activation_bytes
from trivium.planner.peft_counts import (
    LOW_RANK,
    added_parameters,
    extra_kept_bytes,
    num_trainable_parameters,
    target_shapes,
    unkept_bytes,
)
from trivium.planner.settings import PlanSettings

LLAMA = ModelConfig(vocab_size=100, width=512, layers=3, heads=8, kv_heads=1, mlp_width=1024)  # keys: 512 -> 64
GPT2 = ModelConfig(
    vocab_size=100, width=64, layers=3, heads=4, norm="layernorm", mlp="plain", bias="all", positions="learned"
)
T5 = ModelConfig(vocab_size=100, width=64, layers=2, decoder_layers=3, heads=4, kind="encoder-decoder")


def settings(method: str, **more: Any) -> PlanSettings:
    return PlanSettings(peft=method, **more)  # type: ignore[arg-type]


def trained(config: ModelConfig, method: str, **more: Any) -> int:
    return num_trainable_parameters(config, settings(method, **more))


def test_low_rank_by_hand() -> None:
    assert trained(LLAMA.model_copy(update={"layers": 1}), "lora", rank=8, targets=["key"]) == 8 * (512 + 64) == 4_608
    both = 3 * 8 * ((512 + 512) + (512 + 64))
    assert trained(LLAMA, "lora") == trained(LLAMA, "rslora") == both
    assert trained(LLAMA, "dora") == both + 3 * (512 + 64)
    assert trained(LLAMA, "lora", rank=16) == 2 * both
    assert trained(LLAMA, "lora", rank=2, targets=["up", "down", "gate", "output"]) == 3 * 2 * (3 * 1536 + 1024)
    assert (
        trained(T5, "lora", rank=4, targets=["query"]) == (2 + 2 * 3) * 4 * 128
    )  # a decoder's block has two attentions
    assert trained(T5, "lora", rank=4, targets=["up"]) == 5 * 4 * (64 + T5.mlp_width)


def test_adapters_by_hand() -> None:
    one = 2 * 512 * 64 + 64 + 512
    assert trained(LLAMA, "houlsby") == 3 * 2 * one
    assert trained(LLAMA, "pfeiffer") == trained(LLAMA, "parallel") == 3 * one
    assert trained(LLAMA, "pfeiffer", bottleneck=16) == 3 * (2 * 512 * 16 + 16 + 512)
    assert trained(LLAMA, "ia3") == 3 * (64 + 64 + 1024)
    assert trained(T5, "ia3") == 8 * 128 + 5 * T5.mlp_width


def test_soft_prompts_by_hand() -> None:
    assert trained(LLAMA, "prompt", virtual_tokens=20) == 20 * 512
    assert trained(LLAMA, "prefix", virtual_tokens=20) == 3 * 2 * 20 * 64
    assert trained(T5, "prefix", virtual_tokens=5) == 8 * 2 * 5 * 64
    assert trained(LLAMA, "p_tuning", virtual_tokens=20) == 20 * 512 + 3 * (512 * 512 + 512)


@pytest.mark.parametrize("config", [LLAMA, GPT2, T5], ids=["llama", "gpt2", "t5"])
def test_parts_of_the_model_are_those_of_the_built_one(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert trained(config, "norms") == sum(size for name, size in sizes.items() if "norm" in name)
    assert trained(config, "none") == sum(sizes.values())
    stack = "decoder" if config.kind == "encoder-decoder" else ""
    blocks = [name for name in sizes if ".blocks." in f".{name}" and stack in name]
    last = max(int(name.split("blocks.")[1].split(".")[0]) for name in blocks)
    two = sum(sizes[name] for name in blocks if int(name.split("blocks.")[1].split(".")[0]) > last - 2)
    two += sum(size for name, size in sizes.items() if name.startswith(f"{stack or 'stack'}.norm."))
    assert trained(config, "last_layers", last_layers=2) == two
    biases = sum(size for name, size in sizes.items() if name.endswith("bias"))
    if biases:
        assert trained(config, "bias") == biases
    for method in ("none", "bias", "norms", "last_layers"):
        assert added_parameters(GPT2, settings(method)) == 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="no biases: choose norms or lora"):
        trained(LLAMA, "bias")
    with pytest.raises(UserError, match="there are 3: give 3 at most"):
        trained(LLAMA, "last_layers", last_layers=4)
    with pytest.raises(UserError, match="the MLP of this model has no gate"):
        trained(GPT2, "lora", targets=["gate"])


# ---------------------------------------------------------------------------------------------- what autograd keeps

ROWS, LENGTH, RANK = 2, 48, 5
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "gpt2": {"norm": "layernorm", "mlp": "plain", "positions": "learned", "bias": "all", "activation": "gelu_tanh"},
    "bert": {"kind": "encoder", "norm": "layernorm", "norm_placement": "post", "mlp": "plain", "bias": "all"},
    "relu": {"mlp": "plain", "activation": "relu", "positions": "none"},
}
METHODS: dict[str, dict[str, Any]] = {
    "norms": {"peft": "norms"},
    "bias": {"peft": "bias"},
    "lora": {"peft": "lora", "rank": RANK},
    "lora everywhere": {"peft": "lora", "rank": RANK, "targets": ["query", "key", "value", "output", "up", "down"]},
}


class Lora(nn.Module):
    """A frozen linear layer and two thin ones beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.into = nn.Linear(base.in_features, RANK, bias=False)
        self.out = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.out(self.into(x))  # type: ignore[no-any-return]


def prepared(config: ModelConfig, plan: PlanSettings) -> nn.Module:
    """The model with only that trainable which the method trains."""
    model = build_model(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = (plan.peft == "norms" and "norm" in name) or (
            plan.peft == "bias" and name.endswith("bias")
        )
    if plan.peft in LOW_RANK:
        for module in list(model.modules()):
            for name in plan.targets:
                if isinstance(getattr(module, name, None), nn.Linear):
                    setattr(module, name, Lora(getattr(module, name)))
    return model


def kept_by_autograd(config: ModelConfig, plan: PlanSettings) -> int:
    """Bytes that the forward pass saves, weights and their 16-bit copies left out."""
    model = prepared(config, plan)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters() if parameter.dim() == 2}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(sorted(tensor.shape)) not in shapes:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16"):
        model.hidden(torch.zeros((ROWS, LENGTH), dtype=torch.int64))  # type: ignore[operator]
    return sum(kept.values())


def predicted(config: ModelConfig, plan: PlanSettings) -> int:
    tokens, item = ROWS * LENGTH, 4 if plan.precision == "fp32" else 2
    whole = kept_activation_bytes(config, rows_per_micro_batch=ROWS, sequence_length=LENGTH, precision=plan.precision)
    unkept = config.layers * unkept_bytes(config, plan, tokens, item)
    return whole - unkept + extra_kept_bytes(config, plan, tokens, item)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "method"), [(s, m) for s in SHAPES for m in METHODS if m != "bias" or "bias" in SHAPES[s]]
)
def test_what_a_block_keeps_with_frozen_weights(shape: str, method: str, precision: str) -> None:
    """One more block keeps so much more: the first, before which nothing wants a gradient, keeps less than others."""
    plan = PlanSettings(precision=precision, **METHODS[method])  # type: ignore[arg-type]
    sizes = {"vocab_size": 512, "width": 128, "heads": 4, **SHAPES[shape]}
    if "everywhere" in method and shape == "llama":
        plan = plan.model_copy(update={"targets": (*plan.targets, "gate")})
    two, three = (ModelConfig(**{**sizes, "layers": layers}) for layers in (2, 3))
    block = kept_by_autograd(three, plan) - kept_by_autograd(two, plan)
    assert predicted(three, plan) - predicted(two, plan) == block
    # Broken control: the block of full training keeps another amount.
    full = PlanSettings(precision=precision)  # type: ignore[arg-type]
    assert predicted(three, full) - predicted(two, full) != block


def test_targets_are_the_linear_layers_of_the_built_block() -> None:
    block = build_model(LLAMA).stack.blocks[0]  # type: ignore[union-attr]
    layers = {name.rpartition(".")[2]: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    assert {name: (m.in_features, m.out_features) for name, m in layers.items()} == target_shapes(LLAMA)
