"""What is frozen costs nothing in the loss: no gradient of a frozen head or table is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapted_models import inputs, made, shake
from trivium.peft.apply import add_adapter
from trivium.peft.settings import EmbeddingsSettings, LoraSettings, NoPeftSettings, PeftSettings
from trivium.training import cross_entropy

# What is trained, whether the head is tied, and which gradients the loss is to make: of hidden states, of the head.
CASES: dict[str, tuple[PeftSettings, bool, tuple[bool, bool]]] = {
    "lora, tied": (LoraSettings(), True, (True, False)),
    "lora, untied": (LoraSettings(), False, (True, False)),
    "the head too": (LoraSettings(also_train=("head.output",)), False, (True, True)),
    "beside the head alone": (LoraSettings(targets=("head.output",)), False, (False, True)),
    "the table": (EmbeddingsSettings(), True, (True, True)),
    "everything": (NoPeftSettings(), False, (True, True)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_made_where_it_is_wanted_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, tied, wanted = CASES[case]
    model = made("llama", tied_embeddings=tied).train()
    shake(add_adapter(model, settings), model)
    made_of: list[tuple[bool, bool]] = []
    over_chunks = cross_entropy._over_chunks

    def noted(*given: Any) -> Any:
        result = over_chunks(*given)
        made_of.append((result.grad_hidden_ND is not None, result.grad_weight_VD is not None))
        return result

    monkeypatch.setattr(cross_entropy, "_over_chunks", noted)
    (ids,) = inputs(model)
    hidden, weight, bias, softcap = model.projection(model.hidden(ids)[0])  # type: ignore[union-attr]
    found = cross_entropy.chunked_cross_entropy(hidden, weight, ids, bias, softcap).sum
    expected = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="sum")
    assert made_of == [wanted]
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = [torch.autograd.grad(loss, list(learned.values())) for loss in (found, expected)]
    for name, ours, plain in zip(learned, *gradients, strict=True):
        assert float((ours - plain).norm()) <= 1e-4 * float(plain.norm()), name
        assert plain.abs().sum() > 0, name
