"""Our decoder against the GPT-2 classes of transformers: every option, every head, both ways; and its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.gpt2 import GPT2

SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "untied, three layers": {"tie_word_embeddings": False, "n_layer": 3, "n_embd": 40, "n_head": 5},
    "narrow mlp, gelu": {"n_inner": 56, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "relu, unscaled scores": {"activation_function": "relu", "scale_attn_weights": False, "n_head": 1},
    "upcast attention, short": {"reorder_and_upcast_attn": True, "n_positions": 40, "vocab_size": 97},
}
HEADS = {
    "classification": (GPT2ForSequenceClassification, {"num_labels": 3}),
    "scalar": (GPT2ForSequenceClassification, {"num_labels": 1}),
    "token_classification": (GPT2ForTokenClassification, {"num_labels": 5}),
    "span": (GPT2ForQuestionAnswering, {}),
    "none": (GPT2Model, {}),
}


def reference(seed: int = 0, kind: Any = GPT2LMHeadModel, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(GPT2Config(**{**SIZES, "pad_token_id": 0, **options}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert GPT2.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == head


def test_files_of_the_bare_model_with_masks(tmp_path: Path) -> None:
    """The published file lacks the prefix and holds a causal mask for each layer."""
    theirs = shaken(reference())
    opened(theirs, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(2)}
    save_file(tensors, file, {"format": "pt"})
    check_result(theirs, load_weights(tmp_path)[0])


@pytest.mark.parametrize("changes", [{"activation": "gelu"}, {"norm_eps": 1e-2}, {"attention_scale": 1.0}], ids=str)
def test_broken_control_a_wrong_config_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_swapped_weights_are_seen(tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    attention = model.stack.blocks[1].attention
    attention.query, attention.key = attention.key, attention.query
    assert fails(lambda: check_result(theirs, model))
    assert fails(lambda: check_generation(theirs, model))


def test_keys_left_out_and_other_names() -> None:
    assert GPT2.read_config({}, "test") == GPT2.read_config(GPT2Config().to_dict(), "test")
    named = {"hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 6, "max_position_embeddings": 99}
    assert GPT2.read_config(named, "test") == GPT2.read_config(GPT2Config(**named).to_dict(), "test")
    assert GPT2.read_config(named, "test").mlp_width == 4 * 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"scale_attn_weights": "no"}, 'scale_attn_weights is "no"'),
        ({"activation_function": "tanh"}, 'activation_function is "tanh"'),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "architectures is"),
        ({"n_head": 7}, "heads=7 does not divide width=768"),
        ({"n_inner": -4}, "mlp_width"),
        ({"n_positions": [1024]}, "max_positions"),
        ({"resid_pdrop": 2}, "dropout"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        GPT2.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_gpt2_cannot_be() -> None:
    config = GPT2.read_config(SIZES, "test")
    assert GPT2.obstacles(config) == []
    assert GPT2.obstacles(config.changed(kv_heads=2)) == ["kv_heads must be 4 (is 2)"]
    assert GPT2.obstacles(config.changed(attention_scale=0.5)) == ["attention_scale must be 0.0 (is 0.5)"]
    assert GPT2.obstacles(config.changed(mlp="gated")) == ["mlp must be plain (is gated)"]
