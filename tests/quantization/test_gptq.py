"""GPTQ's codes are those of the paper's equations, and its error on the calibration text is never above rounding's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantization.calibrated import CONFIGS, model_of, results, text_of
from trivium.errors import UserError
from trivium.quantization import gptq
from trivium.quantization.calibration import output_errors
from trivium.quantization.linear import PackedLinear
from trivium.quantization.packing import choose_scales, pack, separate, unpack
from trivium.quantization.quantize import quantize_model
from trivium.quantization.ranges import narrowed
from trivium.quantization.schemes import Kind, Layout, scheme_for

LAYOUTS: list[tuple[Kind, int]] = [
    ("int4", 32),
    ("int4", 128),
    ("int4_asymmetric", 32),
    ("int4_asymmetric", 64),
    ("int8", 0),
]


def problem(outputs: int = 24, inputs: int = 256, tokens: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix and the Gram matrix of correlated inputs of unequal size, fp64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    size = torch.rand(inputs, generator=generator, dtype=torch.float64) * 3
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(inputs)) * size
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, x.t() @ x


def written_out(weight: Tensor, gram: Tensor, kind: Kind, group_size: int) -> Tensor:
    """The paper's equations (2) and (3) one column after another, with the inverse itself: the rounded matrix, fp64."""
    inputs = weight.shape[1]
    ranges = weight if not group_size else narrowed(weight.float(), gram.float(), Layout(kind, group_size, False))
    scales, offsets = choose_scales(ranges, kind, group_size)
    weight, rounded = weight.clone(), torch.empty_like(weight)
    inverse = torch.linalg.inv(gram + 0.1 * gram.diagonal().mean() * torch.eye(inputs, dtype=torch.float64))
    low, high = {"int8": (-127, 127), "int4": (-8, 7), "int4_asymmetric": (0, 15)}[kind]
    for i in sorted(range(inputs), key=lambda i: -float(gram[i, i])):
        scale = scales.double() if not group_size else scales[:, i // group_size].double()
        start = 0.0 if offsets is None else offsets[:, i // group_size].double()
        rounded[:, i] = ((weight[:, i] - start) / scale).round().clamp(low, high) * scale + start
        error = (weight[:, i] - rounded[:, i]) / inverse[i, i]
        weight -= error[:, None] * inverse[i]
        inverse = inverse - inverse[:, [i]] * inverse[[i]] / inverse[i, i]  # the inverse without row and column i
    return rounded


@pytest.mark.parametrize(("kind", "group_size"), LAYOUTS)
def test_codes_are_those_of_the_equations(kind: Kind, group_size: int) -> None:
    weight, gram = problem()
    how = Layout(kind, group_size, False)
    expected = written_out(weight, gram, kind, group_size)
    nearest = unpack(pack(weight, how)).double()
    better = output_errors(expected - weight, gram) <= output_errors(nearest - weight, gram)
    expected = torch.where(better[:, None], expected, nearest)
    found = unpack(gptq.solve(weight, gram, how)).double()
    assert torch.allclose(found, expected, rtol=0, atol=1e-6), "codes differ"
    assert bool(better.float().mean() > 0.9)
    # In fp32, as models are quantized, rounding may decide a near tie otherwise, and what follows it.
    single = gptq.solve(weight.float(), gram.float(), how)
    errors = output_errors(unpack(single).double() - weight, gram).sum()
    assert errors == pytest.approx(float(output_errors(found - weight, gram).sum()), rel=0.02)


def test_the_proof_sees_a_wrong_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: updates by the lower factor's rows, and none at all, give other codes and a larger error."""
    weight, gram = problem()
    how = Layout("int4", 32, False)
    expected = unpack(gptq.solve(weight, gram, how))
    good = float(output_errors(expected.double() - weight, gram).sum())
    right = gptq.inverse_factor
    monkeypatch.setattr(gptq, "inverse_factor", lambda gram: torch.eye(len(gram), dtype=torch.float64))
    without = unpack(gptq.solve(weight, gram, how))  # no updates: rounding, in ranges that were narrowed
    assert float(output_errors(without.double() - weight, gram).sum()) > 1.2 * good
    monkeypatch.setattr(gptq, "inverse_factor", lambda gram: right(gram).t().contiguous().triu())
    assert float(output_errors(unpack(gptq.solve(weight, gram, how)).double() - weight, gram).sum()) > 1.5 * good


@pytest.mark.parametrize(("kind", "group_size"), LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_rounded(kind: Kind, group_size: int, seed: int) -> None:
    weight, gram = problem(outputs=40, tokens=[3, 100, 400, 2000][seed], seed=seed)
    how = Layout(kind, group_size, False)
    single = gram.float()
    errors, rounded = (
        output_errors(unpack(packed) - weight.float(), single)
        for packed in (gptq.solve(weight.float(), single, how), pack(weight, how))
    )
    assert bool((errors <= rounded * (1 + 1e-5)).all())
    assert float(errors.sum()) < 0.95 * float(rounded.sum())


def test_columns_that_no_text_excites_are_rounded() -> None:
    weight, gram = problem()
    gram[5], gram[:, 5] = 0, 0
    how = Layout("int8", 0, False)
    found = unpack(gptq.solve(weight, gram, how))
    assert torch.equal(found[:, 5], unpack(pack(weight, how))[:, 5])
    silent = gptq.solve(weight, torch.zeros_like(gram), how)
    assert torch.equal(silent.packed, pack(weight, how).packed)


def test_codes_stay_in_range() -> None:
    weight, gram = problem()
    for kind, group_size in LAYOUTS:
        packed = gptq.solve(weight, gram, Layout(kind, group_size, False))
        codes = separate(packed.packed, kind).int()
        low, high = (-127, 127) if kind == "int8" else (0, 15)
        assert low <= int(codes.min()) and int(codes.max()) <= high


@pytest.mark.parametrize("name", ["llama", "post-norm, sinusoidal, relu", "encoder, post-norm", "encoder-decoder"])
@pytest.mark.parametrize("format", ["int4", "int4_asymmetric", "int8"])
def test_a_model_comes_closer_than_rounded(name: str, format: str) -> None:
    config = CONFIGS[name]
    model, text = model_of(config), text_of(config, batches=8)
    expected = results(model, text)
    differences = {}
    for method in ("nearest", "gptq"):
        quantized = quantize_model(model_of(config), scheme_for(format, method=method), calibration=text)
        differences[method] = float((results(quantized, text) - expected).square().sum())
        assert all(isinstance(module, PackedLinear) for module in linears(quantized))
    assert differences["gptq"] < differences["nearest"]


def linears(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The matrices of all blocks."""
    ends = ("query", "key", "value", "output", "gate", "up", "down")
    return [module for name, module in model.named_modules() if ".blocks." in name and name.endswith(ends)]


def test_what_is_kept_is_kept() -> None:
    config = CONFIGS["llama"]
    scheme = scheme_for("int4", method="gptq", keep=("*.value", "stack.blocks.1.*"))
    model = model_of(config)
    gptq.quantize_blocks(model, scheme, text_of(config))
    packed = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    names = ("attention.query", "attention.key", "attention.output", "mlp.gate", "mlp.up", "mlp.down")
    assert packed == [f"stack.blocks.0.{name}" for name in names]


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    config = CONFIGS["llama"]
    model = model_of(config)
    model.stack.blocks[1].mlp.up.weight.data[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"stack\.blocks\.1\.mlp\.up"):
        gptq.quantize_blocks(model, scheme_for("int4", method="gptq"), text_of(config))
