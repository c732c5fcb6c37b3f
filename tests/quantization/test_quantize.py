"""Whole models: what is packed, what stays, what is refused, for the three families."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from quantization.calibrated import CONFIGS, model_of, results, text_of
from trivium.checkpoints.quantized import DenseState
from trivium.checkpoints.resize import resize_vocabulary
from trivium.errors import UserError
from trivium.models.build import Model, build_model, initialise
from trivium.models.layers import Embedding
from trivium.quantization.linear import PackedEmbedding, PackedLinear, PackedMatrix
from trivium.quantization.quantize import quantize_model, refuse_quantized, tensors_bytes
from trivium.quantization.replacing import scheme_of
from trivium.quantization.schemes import FORMATS, packed_bytes, scheme_for

# Relative difference of the packed model's logits from those of a dense one with the unpacked weights.
NEAR = {
    "fp16": 0.02,
    "bf16": 0.1,
    "int8": 1e-4,
    "int8_dynamic": 0.2,
    "int4": 1e-4,
    "int4_asymmetric": 1e-4,
    "nf4": 1e-4,
}


def fresh(name: str) -> Model:
    """A model as training begins with."""
    model = build_model(CONFIGS[name])
    initialise(model, CONFIGS[name], 1)
    return model.eval()


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_block_in_every_format(name: str, format: str) -> None:
    model, text = fresh(name), text_of(CONFIGS[name], batches=1)
    dense = copy.deepcopy(model)
    assert quantize_model(model, format) is model
    twin = copy.deepcopy(dense)
    twin.load_state_dict({key: tensor.float() for key, tensor in DenseState(model).items()})
    assert difference(results(model, text), results(twin, text)) < NEAR[format]
    assert 0 < difference(results(model, text), results(dense, text)) < 0.5
    scheme = scheme_for(format)
    assert scheme_of(model) == scheme_of(copy.deepcopy(model)) == scheme
    linears = {key: module for key, module in dense.named_modules() if isinstance(module, nn.Linear | Embedding)}
    if not scheme.packs:
        assert {tensor.dtype for tensor in model.state_dict().values()} == {model.dtype} != {torch.float32}
        return
    for key, module in linears.items():
        packed = model.get_submodule(key)
        assert isinstance(packed, PackedEmbedding if isinstance(module, Embedding) else PackedLinear)
        assert packed.matrix.num_bytes == packed_bytes(scheme, *module.weight.shape, key)
    rest = {f"{key}.weight" for key in linears}
    for key, tensor in dense.state_dict().items():
        assert key in rest or torch.equal(model.state_dict()[key], tensor), key
    assert model.dtype == torch.float32 and tensors_bytes(model) < tensors_bytes(dense)


def test_scales_of_other_rows_are_seen() -> None:
    """The broken control of the equality above."""
    model, text = fresh("llama"), text_of(CONFIGS["llama"], batches=1)
    twin = copy.deepcopy(model)
    twin.load_state_dict(dict(DenseState(quantize_model(model, "int4"))))
    for module in model.modules():
        if isinstance(module, PackedMatrix):
            module.scales = module.scales.roll(1, 0)
    assert difference(results(model, text), results(twin, text)) > 100 * NEAR["int4"]


def test_projection_is_the_model_s_own_scores() -> None:
    for name in ("llama", "encoder-decoder"):
        model = quantize_model(model_of(CONFIGS[name]), "int8")
        hidden = torch.randn(3, model.config.width)
        with torch.no_grad():
            assert torch.allclose(model.projection(hidden).logits(), model.logits(hidden), rtol=1e-4, atol=1e-4)


def test_modules_that_are_kept_stay_dense() -> None:
    model = quantize_model(model_of(CONFIGS["llama"]), scheme_for("int4", keep=("embedding", "*.mlp.down")))
    assert isinstance(model.embedding, Embedding)
    kept = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert kept == [f"stack.blocks.{n}.mlp.down" for n in range(model.config.layers)]
    with pytest.raises(UserError, match="keep: the model has no module embeddings; names are like"):
        quantize_model(model_of(CONFIGS["llama"]), scheme_for("int4", keep=("embeddings",)))


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "int8_dynamic"])
def test_damaged_weights_are_refused_by_name_before_anything_changes(format: str) -> None:
    model = model_of(CONFIGS["llama"])
    with torch.no_grad():
        model.stack.blocks[1].mlp.down.weight[3, 4] = torch.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"^stack.blocks.1.mlp.down(.weight)? holds NaN"):
        quantize_model(model, format)
    assert all(torch.equal(tensor, before[name]) or "down" in name for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() and scheme_of(model) is None


def test_what_fp16_cannot_hold_is_refused_by_name() -> None:
    model = model_of(CONFIGS["llama"])
    with torch.no_grad():
        model.stack.blocks[0].mlp.up.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"stack.blocks.0.mlp.up.weight holds 100000, and fp16 ends at 65504"):
        quantize_model(model, "fp16")
    quantize_model(model, "bf16")


def test_a_packed_model_is_not_packed_again_nor_resized_nor_trained() -> None:
    model = quantize_model(model_of(CONFIGS["llama"]), "int8")
    with pytest.raises(UserError, match="stored as int8, which cannot be quantized again: take the original"):
        quantize_model(model, "int4")
    with pytest.raises(UserError, match="cannot be resized"):
        resize_vocabulary(model, model.config, model.config.vocab_size + 8)
    with pytest.raises(UserError, match="cannot be trained further"):
        refuse_quantized(model, "trained further")
    refuse_quantized(model_of(CONFIGS["llama"]), "trained further")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and all("norm" in name or name.endswith("bias") for name in names)


def test_calibrated_methods_need_text_and_pack_all_matrices() -> None:
    config = CONFIGS["llama"]
    scheme = scheme_for("int4", method="gptq")
    with pytest.raises(UserError, match="method gptq needs calibration text"):
        quantize_model(model_of(config), scheme)
    model = quantize_model(model_of(config), scheme, calibration=text_of(config))
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in model.modules())
    assert scheme_of(model) == scheme
