"""Packed models and training: gradients pass through them as if they were dense; they themselves are not trained."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cli.small_models import TEXT, refusal, saved
from trivium.checkpoints.bundle import load, quantize
from trivium.checkpoints.quantized import DenseState
from trivium.errors import UserError
from trivium.finetuning.classifier import LabelledText, train_classifier
from trivium.models.build import Model
from trivium.quantization.linear import PackedLinear, PackedMatrix
from trivium.quantization.quantize import quantize_model
from trivium.runtime import Runtime
from trivium.training.settings import TrainingSettings

FAMILIES = ["llama", "bert", "t5"]
FORMATS = ["int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"]


class LowRank(nn.Module):
    """A linear layer, which stays as it is, and B A x beside it (Hu et al., 2021)."""

    def __init__(self, base: nn.Module, seed: int) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(4, base.in_features, generator=generator) * 0.1)
        self.b = nn.Parameter(torch.randn(base.out_features, 4, generator=generator) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


def with_adapters(model: Model) -> Model:
    """Adapters on every linear layer of the blocks; nothing else is to be trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | PackedLinear)]
    for seed, name in enumerate(name for name in names if ".blocks." in name):
        model.set_submodule(name, LowRank(model.get_submodule(name), seed))
    return model


def twins(folder: Path, family: str, format: str) -> tuple[Model, Model]:
    """A packed model, and a dense one with the same numbers, both with the same adapters."""
    dense = load(saved(folder / family, family)).model
    packed = quantize_model(deepcopy(dense), format)
    dense.load_state_dict(dict(DenseState(packed)))
    return with_adapters(packed), with_adapters(dense)


def loss_of(model: Model) -> Tensor:
    ids = torch.randint(10, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    logits = model(ids, ids) if model.config.kind == "encoder-decoder" else model(ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def gradients(model: Model) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", FORMATS)
def test_adapters_get_the_gradients_of_the_dense_model(family: str, format: str, tmp_path: Path) -> None:
    packed, dense = twins(tmp_path, family, format)
    found, expected = gradients(packed), gradients(dense)
    assert found.keys() == expected.keys() and len(found) >= 2 * 6 * 2
    near = 0.2 if format == "int8_dynamic" else 1e-3  # whose activations are rounded on the way forward

    def difference(grads: dict[str, Tensor]) -> float:
        apart = sum(float((grads[name] - expected[name]).square().sum()) for name in expected)
        return (apart / sum(float(grad.square().sum()) for grad in expected.values())) ** 0.5

    assert difference(found) < near
    # The broken control: a way back through the scales of other rows.
    for module in packed.modules():
        if isinstance(module, PackedMatrix):
            module.scales = module.scales.roll(1, 0).contiguous()
    assert difference(gradients(packed)) > 2 * near


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_learn_over_nf4_and_the_codes_stay(family: str, tmp_path: Path) -> None:
    model, _ = twins(tmp_path, family, "nf4")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    first = float(loss_of(model).detach())
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert float(loss_of(model).detach()) < 0.8 * first
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith((".a", ".b")), name


# ------------------------------------------------------------------------------------------- without adapters: refused


def test_pretraining_does_not_start_from_a_packed_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "packed"
    quantize(load(saved(tmp_path / "m", "llama")), "int8").save(packed)
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = tmp_path / "recipe.yaml"
    data = (
        f"{{train: [{tmp_path}/text.txt], sequence_length: 32, held_out_by: tail, cache_directory: {tmp_path}/cache}}"
    )
    lines: dict[str, Any] = {
        "run": tmp_path / "run",
        "start_from": packed,
        "data": data,
        "device": "cpu",
        "training": "{steps: 1}",
    }
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    said = refusal(capsys, "pretrain", recipe, "--quiet")
    assert "stored as int8, which cannot be trained further: take the original model" in said
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path).glob("run/**/*.safetensors"))


def test_a_packed_model_becomes_no_classifier(tmp_path: Path) -> None:
    saved(tmp_path / "m", "bert")
    rows = [LabelledText("one", 0), LabelledText("two", 1)]

    def trained(base: Path) -> object:
        return train_classifier(
            base, ("a", "b"), rows, rows, tmp_path / "run", TrainingSettings(steps=1), Runtime(), sequence_length=16
        )

    quantize(load(tmp_path / "m"), "int4").save(tmp_path / "packed")
    with pytest.raises(UserError, match=r"stored as int4, which cannot be given another head: take the original"):
        trained(tmp_path / "packed")
    assert not (tmp_path / "run/model").exists()
    assert trained(tmp_path / "m") and (tmp_path / "run/model").is_dir()  # the control
