"""Adapters over packed weights: as over the dense ones they stand for, with gradients; nothing is merged into them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adapted_models import ADDING, inputs, made, shake
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.layers import Embedding
from trivium.peft.apply import add_adapter, merge_adapter, remove_adapter, without_adapter
from trivium.peft.settings import MERGEABLE, LoraSettings
from trivium.quantization.linear import PackedEmbedding, PackedLinear
from trivium.quantization.quantize import quantize_model


def unpacked(model: Model) -> Model:
    """A copy with dense modules that hold the same numbers."""
    dense = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data = module.weight.clone()
            if module.bias is not None:
                linear.bias.data = module.bias.detach().clone()
            dense.set_submodule(name, linear)
        elif isinstance(module, PackedEmbedding):
            table = Embedding(module.num_embeddings, module.embedding_dim)
            table.weight.data = module.weight.clone()
            dense.set_submodule(name, table)
    assert not any(isinstance(module, PackedLinear | PackedEmbedding) for module in dense.modules())
    return dense.eval()


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("method", ADDING)
def test_as_over_the_numbers_they_stand_for(method: str, name: str, scheme: str) -> None:
    packed = quantize_model(made(name, mlp_width=64), scheme)
    dense, given = unpacked(packed), inputs(packed)
    with torch.no_grad():
        base = packed(*given)
    results, gradients = [], []
    for model in (packed, dense):
        adapter = add_adapter(model, ADDING[method])
        with torch.no_grad():
            assert model is dense or torch.equal(model(*given), base)  # fresh
        shake(adapter, model)
        result = model(*given)
        result.square().mean().backward()
        results.append(result.detach())
        own = adapter.parameters(model)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
        gradients.append({key: p.grad for key, p in own.items() if p.grad is not None})
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()
    for key, expected in gradients[1].items():
        assert (gradients[0][key] - expected).norm() <= 1e-4 * expected.norm(), key
    assert (results[0] - base).abs().max() > 1e-2
    with torch.no_grad(), without_adapter(packed):
        assert torch.equal(packed(*given), base)
    if method in MERGEABLE:
        with pytest.raises(UserError, match=r"packed.*merge into the full-precision base"):
            merge_adapter(packed, "default")
    remove_adapter(packed, "default")
    with torch.no_grad():
        assert torch.equal(packed(*given), base)


def test_the_control_a_packed_layer_that_lets_no_gradient_through_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def learns() -> bool:
        packed = quantize_model(made("llama", mlp_width=64), "int4")
        adapter = add_adapter(packed, LoraSettings(targets=("up",), also_train=("stack.norm",)))
        shake(adapter, packed)
        packed(*inputs(packed)).square().mean().backward()
        return adapter.parameters(packed)["stack.blocks.1.mlp.up.lora_a"].grad is not None

    forward = PackedLinear.forward
    assert learns()
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: forward(self, x.detach()))
    assert not learns()


def test_packed_weights_are_not_trained_in_full() -> None:
    packed = quantize_model(made("gpt2"), "int8")
    with pytest.raises(UserError, match=r"also_train: no module with weights that can be trained is named 'embedding'"):
        add_adapter(packed, LoraSettings(also_train=("embedding",)))
    adapter = add_adapter(packed, LoraSettings(also_train=("mlp_norm",)))
    assert any(name.endswith("mlp_norm.weight") for name in adapter.parameters(packed))
