"""Packed modules: the contracts of linear layers and tables, gradients, moves and copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantization.blocks import LAYOUTS
from trivium.models.layers import Embedding
from trivium.quantization.linear import PackedEmbedding, PackedLinear
from trivium.quantization.packing import pack
from trivium.quantization.replacing import put_packed
from trivium.quantization.schemes import Layout

KINDS = pytest.mark.parametrize("kind", [*LAYOUTS, "int8_dynamic"])


def layout_of(kind: str) -> Layout:
    return LAYOUTS.get(kind, Layout("int8_dynamic", 0, False))


def layers(kind: str, bias: bool = True) -> tuple[PackedLinear, nn.Linear]:
    """A packed layer and the dense one of the same numbers."""
    torch.manual_seed(0)
    dense = nn.Linear(128, 24, bias=bias)
    packed = PackedLinear(pack(dense.weight.detach(), layout_of(kind)), dense.bias, torch.float32)
    dense.weight = nn.Parameter(packed.weight)
    return packed, dense


@KINDS
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradient_are_those_of_the_unpacked_layer(kind: str, bias: bool) -> None:
    packed, dense = layers(kind, bias)
    x = torch.randn(2, 5, 128, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    near = 2e-2 if kind == "int8_dynamic" else 1e-5  # whose activations are rounded on the way forward
    y, z = packed(x), dense(twin)
    assert y.shape == z.shape and float(((y - z).norm() / z.norm()).detach()) < near
    (y * z.detach()).sum().backward()
    (z * z.detach()).sum().backward()
    assert x.grad is not None and twin.grad is not None
    assert torch.allclose(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    if bias:
        assert packed.bias is not None and packed.bias.grad is not None and dense.bias.grad is not None
        assert torch.allclose(packed.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in packed.named_parameters()] == (["bias"] if bias else [])
    with torch.no_grad():
        assert float((packed(x) - z).norm() / z.norm()) < near


def test_gradients_reach_an_adapter_below_and_beside() -> None:
    """What QLoRA needs: a low-rank matrix before a packed layer learns as if the layer were dense."""
    packed, dense = layers("nf4, double")
    found = []
    for layer in (packed, dense):
        torch.manual_seed(1)
        down, up = nn.Linear(128, 4, bias=False), nn.Linear(4, 128, bias=False)
        x = torch.randn(7, 128)
        F.silu(layer(x + up(down(x)))).sum().backward()
        assert down.weight.grad is not None
        found.append(down.weight.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert float(found[0].norm()) > 0


def test_autocast_computes_in_its_type() -> None:
    packed, dense = layers("int4")
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = packed(x), dense(x)
    assert y.dtype == z.dtype == torch.bfloat16
    assert float(((y - z).norm() / z.norm()).detach()) < 1e-2
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@KINDS
def test_conversions_do_not_touch_codes_and_scales(kind: str) -> None:
    packed, _ = layers(kind)
    before = packed.matrix.tensors()
    for moved in (copy.deepcopy(packed).to(torch.bfloat16), copy.deepcopy(packed).half().double().float()):
        for name, tensor in moved.matrix.tensors().items():
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
    half = copy.deepcopy(packed).to(torch.bfloat16)
    assert half.weight.dtype == torch.bfloat16 and half.bias is not None and half.bias.dtype == torch.bfloat16
    assert half(torch.randn(2, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16
    other = PackedLinear(pack(torch.randn(24, 128), layout_of(kind)), torch.zeros(24), torch.float32)
    other.load_state_dict(packed.state_dict())
    x = torch.randn(3, 128)
    assert torch.equal(other(x), packed(x))


def test_plain_conversion_would_damage_scales() -> None:
    """The broken control: without the packed modules' own `_apply`, scales follow the compute type."""
    packed, _ = layers("int8")
    nn.Module._apply(packed, lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    assert packed.scales.dtype == torch.bfloat16


@KINDS
def test_a_packed_table_keeps_the_contract_of_tables(kind: str) -> None:
    torch.manual_seed(0)
    table = Embedding(50, 64)
    packed = PackedEmbedding(pack(table.weight.detach(), layout_of(kind)), torch.float32)
    ids = torch.randint(0, 50, (3, 7))
    assert (packed.num_embeddings, packed.embedding_dim) == (50, 64)
    assert torch.equal(packed(ids), packed.weight[ids])
    hidden, bias = torch.randn(3, 64, requires_grad=True), torch.randn(50)
    scores, exact = packed.scores(hidden, bias), F.linear(hidden, packed.weight, bias)
    assert float(((scores - exact).norm() / exact.norm()).detach()) < (2e-2 if kind == "int8_dynamic" else 1e-5)
    scores.sum().backward()
    assert hidden.grad is not None and torch.allclose(hidden.grad[0], packed.weight.sum(0), rtol=1e-4, atol=1e-4)
    assert packed.to(torch.bfloat16)(ids).dtype == torch.bfloat16


def test_what_stands_in_a_place_keeps_bias_and_mode() -> None:
    parent = nn.ModuleDict({"a": nn.Linear(64, 8)}).eval()
    bias = parent["a"].bias
    bias.requires_grad_(False)
    made = put_packed(parent, "a", pack(parent["a"].weight.detach(), "int4"))
    assert parent["a"] is made and made.bias is bias and not made.training
    with pytest.raises(ValueError, match="its packed form"):
        put_packed(nn.ModuleDict({"a": nn.Linear(64, 9)}), "a", made.matrix)
    assert "64, 8, kind=int4, group_size=32, bytes=288" in repr(made)
