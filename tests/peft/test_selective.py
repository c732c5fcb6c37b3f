"""Training some of the model's own weights: which they are, that they alone learn, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapted_models import described, inputs, made, same
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.peft.apply import adapter_names, adapter_state, add_adapter, remove_adapter, use_adapter, without_adapter
from trivium.peft.settings import (
    BiasSettings,
    EmbeddingsSettings,
    LastLayersSettings,
    LoraSettings,
    NoPeftSettings,
    NormsSettings,
    PatternSettings,
    PeftSettings,
)
from trivium.quantization.quantize import quantize_model

# (method, which parameters of gpt2, bert and t5 it trains)
CHOICES: dict[str, tuple[PeftSettings, Callable[[str, Model], bool]]] = {
    "none": (NoPeftSettings(), lambda name, model: True),
    "bias": (BiasSettings(), lambda name, model: name.endswith("bias")),
    "norms": (NormsSettings(), lambda name, model: "norm." in name),
    "embeddings": (EmbeddingsSettings(), lambda name, model: name == "embedding.weight"),
    "embeddings and a norm": (
        EmbeddingsSettings(also_train=("stack.blocks.0.mlp_norm", "encoder.norm", "stack.blocks.1.mlp.up.weight")),
        lambda name, model: (
            name in ("embedding.weight", "encoder.norm.weight", "stack.blocks.1.mlp.up.weight")
            or name.startswith("stack.blocks.0.mlp_norm.")
        ),
    ),
    "last layers": (
        LastLayersSettings(layers=1),
        lambda name, model: name.startswith(
            {"gpt2": ("stack.blocks.2.", "stack.norm."), "bert": ("stack.blocks.1.",)}.get(
                "gpt2" if model.config.kind == "decoder" else "bert" if model.config.kind == "encoder" else "",
                ("decoder.blocks.1.", "decoder.norm."),
            )
        ),
    ),
    "pattern": (
        PatternSettings(patterns=("*.blocks.0.attention.*", "down.weight")),
        lambda name, model: ".blocks.0.attention." in name or name.endswith("down.weight"),
    ),
}


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_was_chosen_learns_and_nothing_else(choice: str, name: str) -> None:
    settings, chosen = CHOICES[choice]
    model = made(name).train()
    if choice == "embeddings and a norm":
        there = [p for p in settings.also_train if any(n.startswith(p) for n, _ in model.named_parameters())]
        settings = settings.model_copy(update={"also_train": tuple(there)})
    if choice == "bias" and name == "t5":
        with pytest.raises(UserError, match="no biases"):
            add_adapter(model, settings)
        return
    before = described(model)
    adapter = add_adapter(model, settings)
    expected = {each for each in before[1] if chosen(each, model)}
    assert expected
    assert {each for each, p in model.named_parameters() if p.requires_grad} == expected
    assert set(adapter.parameters(model)) == set(adapter_state(model, "default")) == expected
    model(*inputs(model)).square().sum().backward()
    assert {each for each, p in model.named_parameters() if p.grad is not None} == expected
    remove_adapter(model, "default")
    assert same(before, described(model)) and adapter_names(model) == ()


def test_there_is_no_base_to_go_back_to() -> None:
    model = made("llama")
    add_adapter(model, NormsSettings())
    use_adapter(model, "default")
    for way in (lambda: use_adapter(model, None), lambda: without_adapter(model).__enter__()):
        with pytest.raises(UserError, match="load the model anew"):
            way()
    with pytest.raises(UserError, match="only adapter"):
        add_adapter(model, LoraSettings(), name="other")
    remove_adapter(model, "default")
    add_adapter(model, LoraSettings(), name="other")


def test_what_cannot_be_trained_is_refused() -> None:
    for settings, what in (
        (BiasSettings(), "method=bias trains nothing: this model has no biases; choose lora"),
        (LastLayersSettings(layers=3), "layers=3, but there are 2: give 2 at most"),
        (PatternSettings(patterns=("norm", "keyy")), r"patterns: no module .* 'keyy': did you mean key\?"),
        (PatternSettings(patterns=("stack.blocks.9.*",)), "in full like embedding"),
    ):
        model = made("llama")
        before = described(model)
        with pytest.raises(UserError, match=what):
            add_adapter(model, settings)
        assert same(before, described(model))
    with pytest.raises(UserError, match="no table of tokens that is not packed"):
        add_adapter(quantize_model(made("llama"), "int8"), EmbeddingsSettings())
