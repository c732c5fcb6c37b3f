"""Texts by models with adapters: with a cache as without, and never past the adapter through the kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapted_models import ADDING, made, shake
from trivium.generation.fast_program import FastProgram
from trivium.generation.fast_stepper import FastStepper
from trivium.generation.generate import stepper_for
from trivium.generation.slots import Slots
from trivium.generation.stepper import PlainStepper, Stepper
from trivium.kernels.native import available
from trivium.kernels.structures import Matrix
from trivium.models.decoder import Decoder
from trivium.peft.apply import add_adapter, remove_adapter, use_adapter
from trivium.peft.settings import NormsSettings, PeftSettings, PrefixTuningSettings, PromptSettings
from trivium.peft.wrapped import Wrapped

needs_kernels = pytest.mark.skipif(not available(), reason="the kernels were not built here")
EVERY: dict[str, PeftSettings] = {
    **ADDING,
    "prompt": PromptSettings(virtual_tokens=3),
    "prefix": PrefixTuningSettings(virtual_tokens=3),
}


def decoder() -> Decoder:
    model = made("llama")
    assert isinstance(model, Decoder)
    return model


def read(model: Decoder, stepper: Stepper) -> Tensor:
    """Logits of a text that is read in pieces, (T, V)."""
    slots = Slots.for_model(model, 1, 32)
    pieces = [[3, 4, 5, 6], [7], [8, 9], [10]]
    return torch.cat([stepper.read(slots, [0], [piece], every=True)[0] for piece in pieces])


@pytest.mark.parametrize("method", EVERY)
def test_in_pieces_as_at_once(method: str) -> None:
    model = decoder()
    shake(add_adapter(model, EVERY[method]), model)
    found = read(model, stepper_for(model))
    with torch.no_grad():
        expected = model(torch.arange(3, 11)[None])[0]
        use_adapter(model, None)
        assert (model(torch.arange(3, 11)[None])[0] - expected).abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-5


@needs_kernels
@pytest.mark.parametrize("method", EVERY)
def test_the_kernels_decline_models_with_something_beside_their_layers(method: str) -> None:
    model = decoder()
    assert FastStepper.of(model)
    add_adapter(model, EVERY[method])
    assert FastStepper.of(model) is None and isinstance(stepper_for(model), PlainStepper)
    use_adapter(model, None)
    assert FastStepper.of(model) is None
    remove_adapter(model, "default")
    assert FastStepper.of(model)
    add_adapter(model, NormsSettings())
    assert FastStepper.of(model)  # the model's own weights, where they were


@needs_kernels
def test_the_control_kernels_that_look_through_the_wrapper_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    shake(add_adapter(model, ADDING["lora"]), model)
    plain = FastProgram._matrix

    def through(self: FastProgram, module: nn.Module, bias: Tensor | None = None) -> Matrix:
        return plain(self, module.base if isinstance(module, Wrapped) else module, bias)

    monkeypatch.setattr(FastProgram, "_matrix", through)
    assert (read(model, FastStepper(model)) - read(model, PlainStepper(model))).abs().max() > 1e-2
