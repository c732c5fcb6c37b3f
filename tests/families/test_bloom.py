"""Our decoder against the BLOOM classes of transformers: every option, every head, both ways; and its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    BloomForQuestionAnswering,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    BloomModel,
)

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.bloom import BLOOM

SIZES = {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "six heads, untied": {"n_head": 6, "hidden_size": 48, "tie_word_embeddings": False},
    "three heads, deep": {"n_head": 3, "hidden_size": 36, "n_layer": 3, "layer_norm_epsilon": 1e-3},
    "one head, trained in parts": {"n_head": 1, "pretraining_tp": 2, "vocab_size": 97},
}
HEADS = {
    "classification": (BloomForSequenceClassification, {"num_labels": 3}),
    "scalar": (BloomForSequenceClassification, {"num_labels": 1}),
    "token_classification": (BloomForTokenClassification, {"num_labels": 5}),
    "span": (BloomForQuestionAnswering, {}),
    "none": (BloomModel, {}),
}


def reference(seed: int = 0, kind: Any = BloomForCausalLM, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(BloomConfig(**{**SIZES, "pad_token_id": 0, **options}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert BLOOM.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == head


def test_files_of_the_bare_model(tmp_path: Path) -> None:
    theirs = shaken(reference())
    opened(theirs, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    check_result(theirs, load_weights(tmp_path)[0])


@pytest.mark.parametrize(
    "changes", [{"activation": "gelu"}, {"norm_eps": 1e-2}, {"positions": "none"}, {"attention_scale": 1.0}], ids=str
)
def test_broken_control_a_wrong_config_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_heads_in_another_order_are_seen(tmp_path: Path) -> None:
    """ALiBi gives each head a slope of its own."""
    theirs = shaken(reference())
    model, config = opened(theirs, tmp_path)
    attention = model.stack.blocks[0].attention
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value):
            for tensor in (linear.weight, linear.bias):
                tensor.copy_(tensor.unflatten(0, (config.heads, -1)).flip(0).flatten(0, 1))
        weight = attention.output.weight
        weight.copy_(weight.unflatten(1, (config.heads, -1)).flip(1).flatten(1))
    assert fails(lambda: check_result(theirs, model))
    assert fails(lambda: check_generation(theirs, model))


def test_keys_left_out_and_other_names() -> None:
    assert BLOOM.read_config({}, "test") == BLOOM.read_config(BloomConfig().to_dict(), "test")
    named = {"n_embed": 48, "num_hidden_layers": 5, "num_attention_heads": 6, "hidden_size": 99}
    assert BLOOM.read_config(named, "test") == BLOOM.read_config(BloomConfig(**named).to_dict(), "test")
    published = {"n_embed": 48, "num_attention_heads": 6, "n_layer": 2, "n_inner": None, "seq_length": 4096}
    config = BLOOM.read_config(published, "test")
    assert (config.width, config.heads, config.mlp_width, config.max_positions) == (48, 6, 192, 4096)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is true"),
        ({"pretraining_tp": 4, "slow_but_exact": True}, "slow_but_exact is true"),
        ({"n_head": 7}, "heads=7 does not divide width=64"),
        ({"n_embed": "wide"}, "width"),
        ({"layer_norm_epsilon": -1}, "norm_eps"),
        ({"seq_length": -2}, "max_positions"),
        ({"architectures": ["BloomForCausalLM", "BloomModel"]}, "architectures is"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        BLOOM.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_bloom_cannot_be() -> None:
    config = BLOOM.read_config(SIZES, "test")
    assert BLOOM.obstacles(config) == []
    assert BLOOM.obstacles(config.changed(mlp_width=100)) == ["mlp_width must be 128 (is 100)"]
    assert BLOOM.obstacles(config.changed(activation="gelu")) == ["activation must be gelu_tanh (is gelu)"]
