"""Scales are taken back exactly by what writes the input, in every kind of block; the error never grows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantization.calibrated import CONFIGS, model_of, results, text_of
from trivium.models.build import Model
from trivium.models.layers import LayerNorm, RMSNorm
from trivium.models.transformer import Block
from trivium.quantization import awq
from trivium.quantization.calibration import Visit, output_errors, visit_blocks
from trivium.quantization.linear import PackedLinear
from trivium.quantization.packing import pack, unpack
from trivium.quantization.quantize import quantize_model
from trivium.quantization.schemes import Layout, scheme_for

ALL = sorted(CONFIGS)
GROUPS = {
    "qkv": ("attention.query", "attention.key", "attention.value"),
    "output": ("attention.output",),
    "cross query": ("cross.query",),
    "cross output": ("cross.output",),
    "cross source": ("cross.key", "cross.value"),
    "gate up": ("mlp.gate", "mlp.up"),
    "up": ("mlp.up",),
    "down": ("mlp.down",),
}
INT4 = Layout("int4", 32, False)


def blocks_of(model: Model) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def groups_in(block: Block) -> list[tuple[str, ...]]:
    return Visit("", block, 0, []).groups()


def fold_everywhere(model: Model, *, halved: bool = False) -> int:
    """Fold random scales into every place that can take one, without rounding anything; how many there were."""
    generator = torch.Generator().manual_seed(0)
    count = 0
    for block in blocks_of(model):
        weights = {name: block.get_submodule(name).weight.data.float() for group in groups_in(block) for name in group}
        for group in groups_in(block):
            if awq.writer_of(block, group) is None:
                continue
            scale = torch.rand(weights[group[0]].shape[1], generator=generator) * 4 + 0.2
            tied = awq._by_value(block, group, scale)
            scale = tied[:, :1].expand_as(tied).flatten().contiguous()
            applied = awq.fold(block, group, weights, scale)
            if halved:  # broken control: the matrices are given another scale than the writer
                for name in group:
                    weights[name] *= torch.linspace(0.9, 1.1, len(applied))
            count += 1
        for name, weight in weights.items():
            block.get_submodule(name).weight.data = weight
    return count


@pytest.mark.parametrize("name", ALL)
def test_folding_leaves_the_function_as_it_was(name: str) -> None:
    config = CONFIGS[name]
    model, text = model_of(config), text_of(config)
    expected = results(model, text)
    assert fold_everywhere(model) >= config.layers  # at least attention's output, everywhere
    assert torch.allclose(results(model, text), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    # Broken control.
    broken = model_of(config)
    fold_everywhere(broken, halved=True)
    assert not torch.allclose(results(broken, text), expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_which_groups_can_be_scaled() -> None:
    def writers(name: str) -> dict[str, str | None]:
        block = blocks_of(model_of(CONFIGS[name]))[-1]
        there = {"".join(group) for group in groups_in(block)}
        return {word: awq.writer_of(block, group) for word, group in GROUPS.items() if "".join(group) in there}

    assert writers("llama") == {
        "qkv": "attention_norm", "output": "attention.value", "gate up": "mlp_norm", "down": "mlp.up",
    }  # fmt: skip
    assert writers("post-norm, sinusoidal, relu") == {
        "qkv": None, "output": "attention.value", "up": None, "down": "mlp.up",
    }  # fmt: skip
    assert writers("layernorm, learned, plain gelu, biases") == {
        "qkv": "attention_norm", "output": "attention.value", "up": "mlp_norm", "down": None,
    }  # fmt: skip
    assert writers("encoder-decoder") == {
        "qkv": "attention_norm", "output": "attention.value", "cross query": "cross_norm", "cross source": None,
        "cross output": "cross.value", "up": "mlp_norm", "down": "mlp.up",
    }  # fmt: skip
    first = blocks_of(model_of(CONFIGS["first attention without norm"]))[0]
    assert awq.writer_of(first, GROUPS["qkv"]) is None


@pytest.mark.parametrize("around_one", [False, True])
def test_a_norm_in_half_precision_is_divided_by_what_is_said(around_one: bool) -> None:
    """The divisor that is applied to the matrices is that of the rounded weight, to fp32."""
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(64, 1e-5, around_one=around_one).to(torch.bfloat16)
    norm.weight.data += torch.randn(64, generator=generator).to(torch.bfloat16) * 0.3
    one = 1 if around_one else 0
    before = norm.weight.data.double() + one
    wanted = torch.rand(64, generator=generator) * 3 + 0.1
    applied = awq._divide_norm(norm, wanted)
    assert torch.allclose((norm.weight.data.double() + one) * applied.double(), before, rtol=1e-6, atol=0)
    assert not torch.equal(applied, wanted)  # it had to give way to what bf16 can hold


def test_a_layernorm_weight_of_zero_keeps_the_scale() -> None:
    norm = LayerNorm(4, 1e-5)
    norm.weight.data[1] = 0
    norm.bias.data += 1.0
    applied = awq._divide_norm(norm, torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert applied.tolist() == [1.0, 2.0, 4.0, 8.0]
    assert norm.bias.data.tolist() == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("name", ["llama", "encoder-decoder", "windows, sandwich, caps, qk-norm"])
def test_scales_never_make_the_error_larger(name: str) -> None:
    config = CONFIGS[name]
    model = model_of(config)
    better = [0, 0]

    def treat(visit: Visit) -> None:
        weights = {name: visit.weight(name).float() for group in visit.groups() for name in group}
        for group in visit.groups():
            if awq.writer_of(visit.block, group) is None or weights[group[0]].shape[1] % 32:
                continue
            seen = visit.statistics(group)
            weight = torch.cat([weights[name] for name in group])
            rounded = float(output_errors(unpack(pack(weight, INT4)) - weight, seen.gram).sum())
            scale = awq.search_scale(visit.block, group, weights, seen, INT4)
            scale = torch.ones(weight.shape[1]) if scale is None else scale
            found = float(output_errors(unpack(pack(weight * scale, INT4)) / scale - weight, seen.gram).sum())
            assert found <= rounded * (1 + 1e-6)
            better[found < 0.9 * rounded] += 1

    visit_blocks(model, text_of(config, batches=6), treat)
    assert better[True] >= 3, better


@pytest.mark.parametrize("name", ["llama", "encoder-decoder", "post-norm, sinusoidal, relu"])
@pytest.mark.parametrize("format", ["int4", "int4_asymmetric", "int8"])
def test_a_model_comes_closer_than_rounded(name: str, format: str) -> None:
    config = CONFIGS[name]
    model, text = model_of(config), text_of(config, batches=8)
    expected = results(model, text)
    differences = {}
    for method in ("nearest", "awq"):
        quantized = quantize_model(model_of(config), scheme_for(format, method=method), calibration=text)
        differences[method] = float((results(quantized, text) - expected).square().sum())
        dense = [name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)]
        assert dense == []
    assert differences["awq"] < differences["nearest"]


def test_what_is_kept_is_kept_and_not_scaled() -> None:
    config = CONFIGS["llama"]
    scheme = scheme_for("int4", method="awq", keep=("*.value", "*.up"))
    model, before = model_of(config), model_of(config)
    awq.quantize_blocks(model, scheme, text_of(config))
    for old, new in zip(blocks_of(before), blocks_of(model), strict=True):
        assert torch.equal(new.attention.value.weight, old.attention.value.weight)
        assert torch.equal(new.mlp.up.weight, old.mlp.up.weight)
        assert torch.equal(new.attention_norm.weight, old.attention_norm.weight)
        assert isinstance(new.attention.output, PackedLinear) and isinstance(new.mlp.down, PackedLinear)
