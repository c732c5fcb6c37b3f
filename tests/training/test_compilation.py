"""Compiled blocks compute what the plain ones do. (A quick back end: what Inductor makes of them is torch's affair.)"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from training.small import TextSource, gradient_of_step, relative_difference, settings, small_model
from trivium.errors import UserError
from trivium.runtime import Runtime
from trivium.training import loop
from trivium.training.compilation import compile_blocks
from trivium.training.loop import train
from trivium.training.token_objective import TokenObjective

CPU = torch.device("cpu")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_gradient_and_names(checkpointing: bool) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = small_model(), small_model()
    compiled.stack.gradient_checkpointing = checkpointing
    assert compile_blocks(compiled, CPU, backend="aot_eager") == 2
    expected = gradient_of_step(plain, TextSource(), Runtime())
    assert relative_difference(gradient_of_step(compiled, TextSource(), Runtime()), expected) < 1e-6
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_the_setting_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(loop, "compile_blocks", lambda model, device: compiled.append(model))
    model = small_model()
    train(model, TokenObjective(), TextSource(), settings(steps=2, compile=True), Runtime())
    assert compiled == [model]


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no stack of blocks"):
        compile_blocks(nn.Linear(2, 2), CPU, backend="eager")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compile_blocks(small_model(), CPU)


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_inductor_trains_as_eager_does() -> None:
    torch._dynamo.reset()
    losses = [
        train(small_model(), TokenObjective(), TextSource(), settings(steps=4, compile=compiled), Runtime()).final_loss
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
