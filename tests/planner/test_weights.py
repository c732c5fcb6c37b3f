"""Stored weights against the tensors of real models, quantized and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.planner.weights import stored_weights_bytes
from trivium.quantization.quantize import quantize_model
from trivium.quantization.schemes import scheme_for

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "tied_embeddings": False},
    "bert": {"kind": "encoder", "norm": "layernorm", "mlp": "plain", "bias": "all", "positions": "learned"}
    | {"head_hidden": "activation_norm", "head_bias": True, "segment_types": 2},
    "t5": {"kind": "encoder-decoder", "positions": "relative", "decoder_layers": 3},
}


def config_of(shape: str) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 300, "width": 128, "layers": 2, "heads": 4, **SHAPES[shape]})


def stored(config: ModelConfig, name: str) -> int:
    """Bytes of all tensors of a real model in a format."""
    model = build_model(config)
    initialise(model, config, seed=0)
    if name != "fp32":
        model = quantize_model(model, name)
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_of_the_real_model(shape: str, name: str) -> None:
    config = config_of(shape)
    planned = stored_weights_bytes(config, "fp32", None if name == "fp32" else scheme_for(name))
    assert planned == stored(config, name)
    assert planned != stored(config, "bf16" if name != "bf16" else "int8")  # broken control


def test_precision_of_what_is_not_packed() -> None:
    config = config_of("bert")
    whole = stored_weights_bytes(config, "fp32")
    assert (
        stored_weights_bytes(config, "bf16") == stored_weights_bytes(config, "fp32", scheme_for("fp16")) == whole // 2
    )
    scheme = scheme_for("int8")
    assert stored_weights_bytes(config, "bf16", scheme) < stored_weights_bytes(config, "fp32", scheme)
    keep = scheme_for("int8", keep=("*.down",))
    more = 2 * (128 * 512 * 4 - 128 * 512 - 128 * 4)
    assert stored_weights_bytes(config, "fp32", keep) == stored_weights_bytes(config, "fp32", scheme) + more
    assert torch.get_default_dtype() == torch.float32
