"""Adapters put on, switched, taken off, merged, saved: for every method that adds modules and every kind of model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapted_models import ADDING, CONFIGS, described, inputs, made, same, shake
from trivium.errors import UserError
from trivium.models.build import Model, set_gradient_checkpointing
from trivium.peft.apply import (
    active_adapter,
    adapter_names,
    adapter_state,
    add_adapter,
    learning_rate_factors,
    load_adapter_state,
    merge_adapter,
    remove_adapter,
    use_adapter,
    without_adapter,
)
from trivium.peft.lora import LowRank
from trivium.peft.settings import (
    MERGEABLE,
    BiasSettings,
    HoulsbySettings,
    IA3Settings,
    LoraSettings,
    NoPeftSettings,
    ParallelSettings,
    PeftSettings,
)
from trivium.peft.targets import bare_modules
from trivium.peft.wrapped import Wrapped
from trivium.training.compilation import compile_blocks

EVERY_METHOD = pytest.mark.parametrize("method", ADDING)
EVERY_MODEL = pytest.mark.parametrize("name", CONFIGS)


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------- put on and taken off


@EVERY_MODEL
@EVERY_METHOD
@torch.no_grad()  # with gradients, torch attends in another way where a bias of the scores is learned
def test_a_fresh_adapter_changes_nothing_and_taken_off_leaves_nothing(name: str, method: str) -> None:
    model = made(name)
    model.embedding.weight.requires_grad_(False)  # what was frozen before stays so
    before, given = described(model), inputs(model)
    expected = model(*given)
    adapter = add_adapter(model, ADDING[method], seed=3)
    assert torch.equal(model(*given), expected)
    assert not same(before, described(model))
    shake(adapter, model)
    assert not torch.allclose(model(*given), expected, atol=1e-3)
    with without_adapter(model):
        assert active_adapter(model) is None
        assert torch.equal(model(*given), expected)
    assert active_adapter(model) == "default"
    assert not torch.equal(model(*given), expected)
    remove_adapter(model, "default")
    assert torch.equal(model(*given), expected)
    assert same(before, described(model)) and adapter_names(model) == ()


@EVERY_MODEL
@EVERY_METHOD
def test_the_adapter_alone_learns(name: str, method: str) -> None:
    model = made(name).train()
    adapter = add_adapter(model, ADDING[method])
    shake(adapter, model)
    own = {id(parameter) for parameter in adapter.parameters(model).values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    model(*inputs(model)).square().sum().backward()
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == own


def test_the_control_a_product_that_does_not_begin_at_zero_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = LowRank.__init__

    def wrong(self: LowRank, *given: Any) -> None:
        begin(self, *given)
        nn.init.constant_(self.lora_b, 1e-4)

    monkeypatch.setattr(LowRank, "__init__", wrong)
    model = made("llama")
    expected = model(*inputs(model))
    add_adapter(model, LoraSettings())
    assert not torch.equal(model(*inputs(model)), expected)


# ----------------------------------------------------------------------------------------------------- merging


@EVERY_MODEL
@pytest.mark.parametrize("method", MERGEABLE)
def test_merged_equals_unmerged(name: str, method: str) -> None:
    model = made(name)
    modules = [(each, type(module)) for each, module in model.named_modules()]
    shake(add_adapter(model, ADDING[method]), model)
    expected = model(*inputs(model))
    merge_adapter(model, "default")
    assert modules == [(each, type(module)) for each, module in model.named_modules()]
    found = model(*inputs(model))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(UserError, match="no adapter 'default'"):
        merge_adapter(model, "default")


def test_merged_is_the_closed_form_and_merging_twice_would_be_seen() -> None:
    model = made("llama").double()
    adapter = add_adapter(model, LoraSettings(rank=4, alpha=12, targets=("stack.blocks.1.mlp.up",)))
    model.double()
    shake(adapter, model)
    place = bare_modules(model)["stack.blocks.1.mlp.up"]
    weight, (a, b) = place.weight.detach().clone(), adapter.parameters(model).values()
    expected = model(*inputs(model))
    merge_adapter(model, "default")
    assert (place.weight - (weight + 3 * b @ a)).abs().max() < 1e-14
    assert (model(*inputs(model)) - expected).abs().max() < 1e-12
    place.weight.data += 3 * (b @ a).detach()  # merged twice
    assert (model(*inputs(model)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "parallel"])
def test_what_cannot_be_merged_is_refused_with_the_reason(method: str) -> None:
    model = made("bert")
    shake(add_adapter(model, ADDING[method]), model)
    expected = model(*inputs(model))
    with pytest.raises(UserError, match="nonlinearity"):
        merge_adapter(model, "default")
    assert torch.equal(model(*inputs(model)), expected)


def test_an_adapter_is_not_merged_beside_others() -> None:
    model = made("llama")
    add_adapter(model, LoraSettings(), name="a")
    add_adapter(model, IA3Settings(), name="b")
    with pytest.raises(UserError, match="remove it before"):
        merge_adapter(model, "a")
    with pytest.raises(UserError, match="nothing is left to merge"):
        other = made("llama")
        add_adapter(other, NoPeftSettings())
        merge_adapter(other, "default")


# ----------------------------------------------------------------------------------------------- several at once


def several(model: Model) -> dict[str | None, Tensor]:
    """Four adapters on one model, and the outputs with each of them alone on a model of its own."""
    settings: dict[str, PeftSettings] = {
        "first": LoraSettings(rank=2, also_train=("stack.norm",)),
        "second": LoraSettings(rank=4, also_train=("norm", "head")),
        "third": IA3Settings(),
        "fourth": ParallelSettings(bottleneck=3),
    }
    expected: dict[str | None, Tensor] = {None: model(*inputs(model)).detach()}
    for seed, (name, each) in enumerate(settings.items()):
        alone = made("llama", tied_embeddings=False)
        shake(add_adapter(alone, each, seed=seed, name=name), alone, seed)
        expected[name] = alone(*inputs(alone)).detach()
        shake(add_adapter(model, each, seed=seed, name=name), model, seed)
    return expected


def check_switched(model: Model, expected: dict[str | None, Tensor], switch: Callable[[str | None], None]) -> None:
    for name in ("first", "fourth", "second", None, "third", "second", "first"):
        switch(name)
        assert torch.equal(model(*inputs(model)), expected[name]), name


def test_several_adapters_of_several_methods_are_switched() -> None:
    model = made("llama", tied_embeddings=False)
    before = described(model)
    expected = several(model)
    assert len({float(each.sum()) for each in expected.values()}) == 5
    check_switched(model, expected, lambda name: use_adapter(model, name))
    with pytest.raises(AssertionError):  # the control: an adapter that stays as it is
        check_switched(model, expected, lambda name: None)
    for name in ("second", "fourth", "first", "third"):
        use_adapter(model, "third" if name != "third" else None)
        remove_adapter(model, name)
    assert same(before, described(model))


def test_what_learns_follows_the_switch() -> None:
    model = made("llama")
    adapters = [add_adapter(model, ADDING[method], name=method) for method in ("lora", "ia3")]
    for adapter in adapters:
        use_adapter(model, adapter.name)
        own = {id(parameter) for parameter in adapter.parameters(model).values()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == own
    use_adapter(model, None)
    assert not any(p.requires_grad for p in model.parameters())
    use_adapter(model, "lora")
    with without_adapter(model):  # a reference inside a step leaves the step's gradients alone
        assert any(p.requires_grad for p in model.parameters())


def test_a_reference_inside_a_step_changes_no_gradient() -> None:
    def gradients(reference: bool) -> dict[str, Tensor]:
        model = made("t5").train()
        set_gradient_checkpointing(model, True)
        shake(add_adapter(model, LoraSettings(also_train=("embedding",))), model)
        result = model(*inputs(model))
        if reference:
            with torch.no_grad(), without_adapter(model):
                model(*inputs(model))
        result.square().sum().backward()
        return grads(model)

    plain, beside = gradients(False), gradients(True)
    assert plain.keys() == beside.keys() and all(torch.equal(plain[name], beside[name]) for name in plain)


# --------------------------------------------------------------------------------------------------- also_train


def test_what_is_trained_in_full_is_a_copy_of_the_adapters() -> None:
    model = made("bert", head="classification", labels=("a", "b", "c"), head_hidden="tanh")
    given, before = inputs(model), described(model)
    expected = model(*given)
    adapter = add_adapter(model, LoraSettings(also_train=("head", "stack.blocks.0.attention_norm")))
    names = [name for name in adapter.parameters(model) if "lora" not in name]
    assert set(names) == {name for name in before[1] if name.startswith(("head.", "stack.blocks.0.attention_norm."))}
    assert torch.equal(model(*given), expected)
    shake(adapter, model)
    trained = model(*given)
    use_adapter(model, None)
    assert torch.equal(model(*given), expected)
    shake(adapter, model, seed=6)  # also while it is not in place
    use_adapter(model, "default")
    assert not torch.equal(model(*given), trained)
    state, merged = adapter_state(model, "default"), copy.deepcopy(model)
    merge_adapter(merged, "default")
    assert (merged(*given) - model(*given)).abs().max() < 1e-5
    assert torch.equal(merged.state_dict()["head.output.weight"], state["head.output.weight"])
    remove_adapter(model, "default")
    assert same(before, described(model))


def test_two_ways_of_training_one_layer_are_refused() -> None:
    model = made("llama")
    before = described(model)
    with pytest.raises(UserError, match=r"also_train: stack.blocks.0.mlp.gate.weight .* one of the targets"):
        add_adapter(model, LoraSettings(also_train=("stack.blocks.0.mlp",)))
    with pytest.raises(UserError, match=r"also_train: no module .* 'haed': did you mean head"):
        add_adapter(made("llama", tied_embeddings=False), LoraSettings(also_train=("haed",)))
    assert same(before, described(model))


# ---------------------------------------------------------------------------------------------- names and saving


@EVERY_METHOD
def test_saved_and_loaded_it_is_the_same(method: str) -> None:
    model, other = made("t5"), made("t5")
    settings = ADDING[method].model_copy(update={"also_train": ("embedding",)})
    shake(add_adapter(model, settings), model)
    state = adapter_state(model, "default")
    assert all(name.startswith(("encoder.", "decoder.", "embedding.")) and "parts" not in name for name in state)
    add_adapter(other, settings, name="other", seed=9, trainable=False)
    assert not any(parameter.requires_grad for parameter in other.parameters())
    load_adapter_state(other, "other", state)
    assert torch.equal(other(*inputs(other)), model(*inputs(model)))


def test_tensors_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = made("llama")
    add_adapter(model, LoraSettings(targets=("up",)))
    state = {name: tensor + 1 for name, tensor in adapter_state(model, "default").items()}
    first = next(iter(state))
    before = described(model)
    for wrong, what in (
        ({name: tensor for name, tensor in state.items() if name != first}, f"1 tensors are missing, such as {first}"),
        (state | {"stack.x": state[first]}, "1 tensors have no place in it, such as stack.x"),
        (state | {first: state[first].T}, r"lora_a is \(32, 8\), not \(8, 32\)"),
    ):
        with pytest.raises(UserError, match=what):
            load_adapter_state(model, "default", wrong)
    assert same(before, described(model))
    load_adapter_state(model, "default", state)
    assert not same(before, described(model))


def test_names() -> None:
    model = made("llama")
    for name in ("a.b", "", "items", "training", "é"):
        with pytest.raises(UserError, match="cannot name an adapter"):
            add_adapter(model, LoraSettings(), name=name)
    add_adapter(model, LoraSettings(), name="a-1_B")
    with pytest.raises(UserError, match="already"):
        add_adapter(model, LoraSettings(), name="a-1_B")
    with pytest.raises(UserError, match=r"no adapter 'b'; its adapters: a-1_B"):
        use_adapter(model, "b")
    with pytest.raises(UserError, match="can be its only adapter"):
        add_adapter(model, BiasSettings(), name="b")
    use_adapter(made("llama"), None)  # nothing to switch off


def test_weights_depend_on_seed_and_name_alone() -> None:
    def drawn(seed: int, **settings: Any) -> dict[str, Tensor]:
        model = made("llama", seed=1)
        torch.manual_seed(len(settings))
        add_adapter(model, LoraSettings(**settings), seed=seed)
        return adapter_state(model, "default")

    everywhere, few = drawn(0), drawn(0, targets=("down",))
    assert len(few) == 4 and all(torch.equal(few[name], everywhere[name]) for name in few)
    a = [tensor for name, tensor in everywhere.items() if name.endswith("lora_a")]
    assert len({float(each.flatten()[0]) for each in a}) == len(a)
    assert not torch.equal(a[0], drawn(1)["stack.blocks.0.attention.query.lora_a"])
    bound = 32**-0.5
    assert 0.95 * bound < a[0].abs().max() <= bound and abs(a[0].std() / (bound / 3**0.5) - 1) < 0.1


def test_lora_plus_multiplies_the_rate_of_the_second_matrix() -> None:
    model = made("llama")
    add_adapter(model, LoraSettings(targets=("up",), learning_rate_ratio=16), name="plus")
    factors = learning_rate_factors(model)
    parameters = dict(model.named_parameters())
    assert len(factors) == 2 and set(factors.values()) == {16.0}
    assert all(parameters[name].requires_grad and parameters[name].shape == (56, 8) for name in factors)
    use_adapter(model, None)
    assert learning_rate_factors(model) == {}
    add_adapter(model, LoraSettings(targets=("up",)))
    assert learning_rate_factors(model) == {}


# ------------------------------------------------------------------------------------------------- in company


@EVERY_METHOD
def test_copies_recomputed_activations_and_compiled_blocks_compute_the_same(method: str) -> None:
    model = made("llama").train()
    shake(add_adapter(model, ADDING[method]), model)
    expected = model(*inputs(model))
    expected.square().sum().backward()
    wanted = grads(model)
    assert wanted
    for change in (lambda each: set_gradient_checkpointing(each, True), compiled):
        other = copy.deepcopy(model)
        other.zero_grad()
        change(other)
        found = other(*inputs(other))
        found.square().sum().backward()
        gradients = grads(other)
        assert torch.allclose(found, expected, atol=1e-6) and gradients.keys() == wanted.keys()
        assert all(torch.allclose(gradients[key], wanted[key], atol=1e-5, rtol=1e-4) for key in wanted)
    shake_copy = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shake_copy.parameters():
            parameter.zero_()
    assert torch.equal(model(*inputs(model)), expected)  # a copy shares nothing


def compiled(model: Model) -> None:
    torch.compiler.reset()
    assert compile_blocks(model, torch.device("cpu"), backend="eager") == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_METHOD
def test_over_half_precision_new_weights_are_in_fp32(method: str, dtype: torch.dtype) -> None:
    model, exact = made("llama").to(dtype), made("llama").to(dtype).float()
    settings = ADDING[method].model_copy(update={"also_train": ("stack.norm",)})
    adapters = [add_adapter(each, settings) for each in (model, exact)]
    assert all(p.dtype == torch.float32 for p in adapters[0].parameters(model).values())
    for adapter, each in zip(adapters, (model, exact), strict=True):
        shake(adapter, each, by=0.05)
    expected = exact(*inputs(exact))
    with torch.autocast("cpu", dtype):
        found = model(*inputs(model))
    assert (found.float() - expected).abs().max() < 0.03 * expected.abs().max()
    with without_adapter(model):
        assert (model(*inputs(model)).float() - expected).abs().max() > 0.05 * expected.abs().max()
    used = made("llama").to(dtype)
    add_adapter(used, settings, trainable=False)
    load_adapter_state(used, "default", adapter_state(model, "default"))
    found = used(*inputs(used))  # without autocast
    assert found.dtype == dtype and (found.float() - expected).abs().max() < 0.03 * expected.abs().max()


def test_wrappers_stand_only_where_the_method_wants_them() -> None:
    model = made("t5")
    for method, places in (
        ("houlsby", {"attention.output": 4, "mlp.down": 4}),
        ("pfeiffer", {"mlp.down": 4}),
        ("parallel", {"mlp": 4}),
        ("ia3", {"attention.key": 4, "attention.value": 4, "cross.key": 2, "cross.value": 2, "mlp.down": 4}),
    ):
        add_adapter(model, ADDING[method])
        wrapped = [name for name, module in model.named_modules() if isinstance(module, Wrapped)]
        found = [name.split(".", 3)[3] for name in wrapped]
        assert {name: found.count(name) for name in found} == places
        remove_adapter(model, "default")


def test_parallel_and_serial_adapters_are_told_apart() -> None:
    model = made("gpt2")
    add_adapter(model, ParallelSettings(bottleneck=3, also_train=("stack.blocks.0.mlp.down",)), name="a")
    add_adapter(model, HoulsbySettings(bottleneck=3), name="b")
    a, b = (set(adapter_state(model, name)) for name in "ab")
    assert "stack.blocks.0.mlp.down.weight" in a and "stack.blocks.0.mlp.adapter_down.weight" in a
    assert "stack.blocks.0.mlp.down.adapter_down.weight" in b and not a & b
