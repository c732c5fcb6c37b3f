"""Our decoder against the Mistral classes of transformers: with and without windows, every head, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.errors import UserError
from trivium.families.mistral import MISTRAL

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "window of 7": {"sliding_window": 7},
    "window of 2, tied": {"sliding_window": 2, "tie_word_embeddings": True, "num_hidden_layers": 3},
    "window longer than the text": {"sliding_window": 100, "num_key_value_heads": 4, "hidden_act": "gelu"},
    "no window, wide heads": {"sliding_window": None, "head_dim": 12, "num_key_value_heads": 1},
    "window, linear": {
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        "hidden_size": 36,
        "head_dim": 8,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
}
HEADS = {
    "classification": (MistralForSequenceClassification, {"num_labels": 3}),
    "scalar": (MistralForSequenceClassification, {"num_labels": 1}),
    "token_classification": (MistralForTokenClassification, {"num_labels": 5}),
    "span": (MistralForQuestionAnswering, {}),
    "none": (MistralModel, {}),
}


def reference(seed: int = 0, kind: Any = MistralForCausalLM, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(MistralConfig(**{**SIZES, "pad_token_id": 0, "sliding_window": 7, **options}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert MISTRAL.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == head


@pytest.mark.parametrize(
    "changes", [{"sliding_window": 0}, {"sliding_window": 6}, {"sliding_window": 8}, {"rope_theta": 9e3}], ids=str
)
def test_broken_control_a_wrong_config_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_a_missing_window_is_seen_in_texts(tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_generation(theirs, model)
    assert fails(lambda: check_generation(theirs, rebuilt(model, sliding_window=0)))


def test_keys_left_out() -> None:
    assert MISTRAL.read_config({}, "test") == MISTRAL.read_config(MistralConfig().to_dict(), "test")
    assert MISTRAL.read_config({"sliding_window": None}, "test").sliding_window == 0
    assert MISTRAL.read_config({"num_key_value_heads": None}, "test").kv_heads == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sliding_window": 0}, "sliding_window is 0: give a number above 0, or null"),
        ({"sliding_window": "4096"}, 'sliding_window is "4096"'),
        ({"layer_types": ["full_attention"] * 32}, "layer_types is set"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures is"),
        ({"rope_scaling": {"type": "longrope"}}, 'of type "longrope"'),
        ({"head_dim": 3}, "rotary positions turn pairs"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        MISTRAL.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_mistral_cannot_be() -> None:
    config = MISTRAL.read_config(SIZES, "test")
    assert MISTRAL.obstacles(config) == []
    assert MISTRAL.obstacles(config.changed(full_attention_layers=(1,))) == [
        "full_attention_layers must be () (is (1,))"
    ]
    assert MISTRAL.obstacles(config.changed(bias="attention")) == ["bias must be none (is attention)"]
