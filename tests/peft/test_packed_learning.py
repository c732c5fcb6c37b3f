"""Learning over packed weights: every code stays, and what is beside it learns as over the numbers they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapted_models import ADDING, described, inputs, made, same, shake
from families.parity import relative
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.peft.apply import adapter_state, add_adapter, load_adapter_state, remove_adapter
from trivium.peft.settings import EmbeddingsSettings, LoraSettings, NormsSettings
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.quantize import quantize_model

SIZES = {"width": 64, "mlp_width": 96}


def packed_model(scheme: str) -> Model:
    return quantize_model(made("llama", **SIZES), scheme)


def gradients(model: Model) -> dict[str, Tensor]:
    direction = torch.randn(2, 9, 53, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (model(*inputs(model)).log_softmax(-1) * direction).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def likeness(scheme: str, *, rounded: bool = True) -> tuple[float, float]:
    """How far apart the results of LoRA over packed and over dense weights are, and the cosine of their gradients.

    `rounded`: the dense weights are what the codes stand for; otherwise the weights before they were packed.
    """
    dense = made("llama", **SIZES)
    packed = quantize_model(copy.deepcopy(dense), scheme)
    if rounded:
        for name, module in packed.named_modules():
            if isinstance(module, PackedMatrix):
                dense.get_submodule(name).weight = nn.Parameter(module.weight)
    for model in (packed, dense):
        shake(add_adapter(model, ADDING["lora"]), model)
    load_adapter_state(dense, "default", adapter_state(packed, "default"))
    with torch.no_grad():
        difference = relative(packed(*inputs(packed)), dense(*inputs(dense)))
    ours, theirs = gradients(packed), gradients(dense)
    assert ours.keys() == theirs.keys() and len(ours) == len(adapter_state(packed, "default"))
    both = [torch.cat([each[name].flatten() for name in ours]) for each in (ours, theirs)]
    return difference, float(F.cosine_similarity(both[0].double(), both[1].double(), 0))


def test_activations_that_are_rounded_too_and_the_control_weights_that_were_not() -> None:
    """int8_dynamic rounds what it reads, so that results are near and not equal."""
    difference, cosine = likeness("int4_asymmetric")
    assert difference < 1e-5 and cosine > 1 - 1e-9
    difference, cosine = likeness("int8_dynamic")
    assert 1e-5 < difference < 0.05 and cosine > 0.98
    difference, _ = likeness("int4_asymmetric", rounded=False)
    assert difference > 0.01


def test_it_learns_by_heart_while_every_code_stays() -> None:
    """QLoRA (Dettmers et al., 2023): two rows over nf4, in autocast's bf16; and the model comes back whole."""
    model = packed_model("nf4")
    before = described(model)
    adapter = add_adapter(model, LoraSettings(rank=8))
    optimizer = torch.optim.AdamW(adapter.parameters(model).values(), lr=1e-2)
    (ids,) = inputs(model)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] > 3 and losses[-1] < 0.3, losses
    remove_adapter(model, "default")
    assert same(before, described(model))


def test_norms_of_a_packed_model_can_be_trained_and_its_table_cannot() -> None:
    model = packed_model("int4")
    adapter = add_adapter(model, NormsSettings())
    assert gradients(model).keys() == adapter.parameters(model).keys() and len(adapter.parameters(model)) == 5
    with pytest.raises(UserError, match="no table of tokens that is not packed"):
        add_adapter(packed_model("int4"), EmbeddingsSettings())
