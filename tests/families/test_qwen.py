"""Our decoder against the Qwen 2 and Qwen 3 classes of transformers: every option, every head, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Qwen2Config, Qwen3Config

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.qwen2 import QWEN2
from trivium.families.qwen3 import QWEN3

FAMILIES = {"Qwen2": QWEN2, "Qwen3": QWEN3}
CONFIGS = {"Qwen2": Qwen2Config, "Qwen3": Qwen3Config}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "upper layers windowed, tied": {**WINDOWED, "max_window_layers": 1, "tie_word_embeddings": True},
    "all layers windowed": {**WINDOWED, "max_window_layers": 0, "num_key_value_heads": 4},
    "some layers windowed": {
        **WINDOWED,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "no layer windowed": {**WINDOWED, "max_window_layers": 28, "num_hidden_layers": 2, "hidden_act": "gelu"},
    "yarn, wide heads": {"rope_parameters": YARN, "head_dim": 12, "num_key_value_heads": 1},
}
HEADS = {
    "classification": ("ForSequenceClassification", {"num_labels": 3}),
    "scalar": ("ForSequenceClassification", {"num_labels": 1}),
    "token_classification": ("ForTokenClassification", {"num_labels": 5}),
    "span": ("ForQuestionAnswering", {}),
    "none": ("Model", {}),
}


def reference(name: str, kind: str = "ForCausalLM", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name + kind)(CONFIGS[name](**{**SIZES, "pad_token_id": 0, **options}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(name, **options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert FAMILIES[name].read_config(theirs.config.to_dict(), "test") == config
    layers = [config.is_windowed(layer) for layer in range(config.layers)]
    assert layers == [kind == "sliding_attention" for kind in theirs.config.layer_types]


def test_biases_of_qwen3(tmp_path: Path) -> None:
    _, config = check_family(reference("Qwen3", attention_bias=True), tmp_path)
    assert config.bias == "attention"


def test_qwen2_without_head_dim(tmp_path: Path) -> None:
    """As published: the width of a head follows from the others."""
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    theirs = transformers.Qwen2ForCausalLM(Qwen2Config(**sizes, pad_token_id=0))
    _, config = check_family(theirs, tmp_path)
    assert config.head_width == 8


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_heads(name: str, head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(name, kind, **labels), tmp_path)
    assert config.head == head


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen2", {"full_attention_layers": ()}),
        ("Qwen2", {"sliding_window": 4}),
        ("Qwen2", {"rope_theta": 9e3}),
        ("Qwen3", {"sliding_window": 6}),
        ("Qwen3", {"norm_eps": 1e-2}),
        ("Qwen3", {"qk_norm": "none"}),
    ],
    ids=str,
)
def test_broken_control_a_wrong_config_is_seen(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference(name, **WINDOWED, max_window_layers=1))
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_swapped_norms_are_seen(tmp_path: Path) -> None:
    theirs = shaken(reference("Qwen3"))
    model, _ = opened(theirs, tmp_path)
    block = model.stack.blocks[0]
    block.attention_norm, block.mlp_norm = block.mlp_norm, block.attention_norm
    assert fails(lambda: check_result(theirs, model))


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_left_out(name: str) -> None:
    family = FAMILIES[name]
    assert family.read_config({}, "test") == family.read_config(CONFIGS[name]().to_dict(), "test")
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": None}
    assert family.read_config(sizes, "test") == family.read_config(CONFIGS[name](**sizes).to_dict(), "test")
    unused = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 4}
    assert family.read_config(unused, "test").sliding_window == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_sliding_window": "no"}, 'use_sliding_window is "no"'),
        ({**WINDOWED, "sliding_window": 0, "max_window_layers": 1}, "sliding_window is 0, but layer_types has"),
        ({**WINDOWED, "sliding_window": "5", "max_window_layers": 1}, 'sliding_window is "5", but layer_types has'),
        ({**WINDOWED, "max_window_layers": "all"}, 'max_window_layers is "all"'),
        ({"layer_types": ["sliding_attention"] * 32}, "sliding_window is null, but layer_types has"),
        ({"layer_types": ["full_attention"]}, "layer_types is"),
        ({"layer_types": ["chunked_attention"] * 32}, "layer_types is"),
        ({"layer_types": [["full_attention"]] * 32}, "layer_types is"),
        ({"layer_types": "full_attention"}, "layer_types is"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": "many"}, 'num_hidden_layers is "many"'),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}, "full_attention"),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "architectures is"),
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_what_we_would_compute_otherwise_is_refused(family: Family, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        family.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_qwen_cannot_be() -> None:
    config = QWEN2.read_config(SIZES, "test")
    assert QWEN2.obstacles(config) == []
    assert QWEN3.obstacles(config) == ["qk_norm must be head (is none)", "bias must be none (is qkv)"]
    assert QWEN2.obstacles(config.changed(bias="none")) == ["bias must be qkv (is none)"]
    windowed = config.changed(sliding_window=9, full_attention_layers=(1,))
    assert QWEN2.obstacles(windowed) == []
    assert QWEN2.write_config(windowed)["max_window_layers"] == 0
