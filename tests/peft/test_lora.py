"""LoRA, rsLoRA and DoRA as formulas; the numbers and shapes of their weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapted_models import inputs, made, shake
from trivium.errors import UserError
from trivium.peft.apply import add_adapter, merge_adapter, without_adapter
from trivium.peft.lora import Dora, LowRank, scale_of
from trivium.peft.settings import DoraSettings, LoraSettings, LowRankSettings, RsLoraSettings
from trivium.peft.targets import bare_modules
from trivium.peft.wrapped import Wrapped, drawn_uniform


def part(outputs: int, inputs: int, rank: int = 8, scale: float = 2.0, dropout: float = 0.0) -> LowRank:
    return LowRank(drawn_uniform(rank, inputs, 0, "a"), outputs, scale, dropout)


def moved(each: nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in each.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


def numbers(each: nn.Module) -> int:
    return sum(parameter.numel() for parameter in each.parameters())


def test_numbers() -> None:
    assert numbers(part(512, 64)) == numbers(part(64, 512)) == 4608
    assert numbers(part(256, 32)) == 2304
    assert numbers(Dora(drawn_uniform(8, 64, 0, "a"), nn.Linear(64, 512), 2.0, 0.0)) == 4608 + 512


def test_scales() -> None:
    name = "stack.blocks.1.mlp.up"
    assert scale_of(LoraSettings(rank=4), name) == 2
    assert scale_of(LoraSettings(rank=16, alpha=8), name) == 0.5
    assert scale_of(RsLoraSettings(rank=16, alpha=8), name) == 2
    assert scale_of(DoraSettings(rank=16, alpha=8, ranks={"*.blocks.1.*": 2}), name) == 4
    both = LoraSettings(rank=16, alpha=8, ranks={"up": 2, "stack.*": 4}, alphas={"down": 1, "up": 3})
    assert scale_of(both, name) == 3 / 4  # the last that matches


@pytest.mark.parametrize("settings", [LoraSettings(rank=4, alpha=20), RsLoraSettings(rank=4, alpha=20)])
def test_the_sum_and_the_control_another_scale(settings: LowRankSettings) -> None:
    model = made("gpt2").double()
    add_adapter(model, settings.model_copy(update={"targets": ("up",)}))
    model.double()
    layer = model.get_submodule("stack.blocks.0.mlp.up")
    assert isinstance(layer, Wrapped)
    moved(layer.parts)
    base, added = bare_modules(model)["stack.blocks.0.mlp.up"], layer.parts["default"]
    x = torch.randn(3, 5, 32, dtype=torch.float64)

    def difference(scale: float) -> float:
        expected = F.linear(x, base.weight + scale * added.lora_b @ added.lora_a, base.bias)
        return float((layer(x) - expected).detach().abs().max())

    right, wrong = (5.0, 10.0) if settings.method == "lora" else (10.0, 5.0)
    assert difference(right) < 1e-13 and difference(wrong) > 0.1


def test_dropout_acts_on_the_products_input_and_in_training_alone() -> None:
    layer, each = nn.Linear(16, 8), part(8, 16, rank=2, dropout=0.5)
    moved(each)
    x = torch.ones(1, 400, 16)
    each.eval()
    assert torch.allclose(each(layer, x), layer(x) + 2 * x @ each.lora_a.T @ each.lora_b.T, atol=1e-5)
    each.train()
    torch.manual_seed(0)
    found = each(layer, x)
    torch.manual_seed(0)
    dropped = F.dropout(x, 0.5)
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert torch.allclose(found, layer(x) + 2 * dropped @ each.lora_a.T @ each.lora_b.T, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_dora_by_its_definition_with_gradients(bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(24, 10, bias=bias).double()
    each = Dora(drawn_uniform(3, 24, 0, "a"), layer, 1.5, 0.0).double()
    moved(each)
    x, direction = torch.randn(7, 24).double(), torch.randn(7, 10).double()

    def defined(constant: bool) -> Tensor:
        v = layer.weight + 1.5 * each.lora_b @ each.lora_a
        lengths = v.norm(dim=1, keepdim=True)
        return F.linear(x, each.magnitude[:, None] * v / (lengths.detach() if constant else lengths), layer.bias)

    def gradients(result: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((result * direction).sum(), list(each.parameters())))

    found, expected = each(layer, x), defined(True)
    assert (found - expected).abs().max() < 1e-12
    pairs = list(zip(gradients(found), gradients(expected), strict=True))
    assert all((a - b).abs().max() < 1e-11 for a, b in pairs)
    other = list(zip(gradients(each(layer, x)), gradients(defined(False)), strict=True))
    assert any((a - b).abs().max() > 1e-3 for a, b in other)  # the control: lengths that are differentiated
    weight, _ = each.merged((layer.weight, layer.bias))
    assert (F.linear(x, weight, layer.bias) - expected).abs().max() < 1e-12


def test_dora_of_a_row_of_zeros_and_of_converted_weights() -> None:
    layer = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(layer.weight[1])
    each, x = Dora(drawn_uniform(2, 8, 0, "a"), layer, 1.0, 0.0), torch.randn(5, 8)
    y = each(layer, x)
    assert torch.equal(y, layer(x))
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in each.parameters())  # type: ignore[union-attr]
    moved(each)
    with torch.no_grad():
        each.magnitude[1] = 0
    wide = Dora(drawn_uniform(2, 8, 0, "a"), layer, 1.0, 0.0)
    wide.load_state_dict(each.state_dict())
    wide(layer, x)  # computes the lengths of the rows in fp32; they must not survive a conversion
    layer.double()
    wide.double()
    exact, _ = wide.merged((layer.weight, None))
    assert (wide(layer, x.double()) - F.linear(x.double(), exact)).abs().max() < 1e-13


@pytest.mark.parametrize("settings", [LoraSettings, DoraSettings])
def test_beside_an_untied_head_losses_without_logits_see_the_product(settings: type[LowRankSettings]) -> None:
    model = made("llama", tied_embeddings=False)
    adapter = add_adapter(model, settings(targets=("head.output", "query")))
    shake(adapter, model)
    hidden, _ = model.hidden(*inputs(model))
    logits = model.logits(hidden)
    assert (model.projection(hidden).logits() - logits).abs().max() < 1e-5
    gradients = [
        torch.autograd.grad(each.square().sum(), list(adapter.parameters(model).values()))
        for each in (model(*inputs(model)), model.projection(model.hidden(*inputs(model))[0]).logits())
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    with without_adapter(model):
        assert torch.equal(model.projection(hidden).weight, model.head.output.base.weight)  # type: ignore[union-attr]
    merge_adapter(model, "default")
    assert (model.logits(hidden) - logits).abs().max() < 1e-5


def test_patterns_that_name_nothing_are_refused() -> None:
    for settings, what in (
        (LoraSettings(targets=("querry",)), "targets: no linear layer is named 'querry': did you mean query"),
        (LoraSettings(targets=("q_proj",)), "there are query, key, value, output, gate, up, down"),
        (LoraSettings(targets=("up",), ranks={"down": 4}), "ranks: 'down' matches none of the targets"),
        (LoraSettings(ranks={"up": 0}), "ranks: 'up' is 0"),
        (LoraSettings(alphas={"x": 4}), "alphas: 'x' matches none"),
    ):
        with pytest.raises(UserError, match=what):
            add_adapter(made("llama"), settings)


def test_ranks_of_single_layers() -> None:
    model = made("llama")
    adapter = add_adapter(model, LoraSettings(rank=4, targets=("up", "down"), ranks={"stack.blocks.1.*": 6}))
    ranks = {name: tensor.shape[0] for name, tensor in adapter.parameters(model).items() if name.endswith("lora_a")}
    assert list(ranks.values()) == [4, 4, 6, 6] and list(ranks)[2] == "stack.blocks.1.mlp.up.lora_a"
