"""Our decoder against the GPT-NeoX classes of transformers (Pythia): every option, every head, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
)

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.gpt_neox import GPT_NEOX

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "pythia": {},
    "sequential, half rotated": {"use_parallel_residual": False, "rotary_pct": 0.5, "num_hidden_layers": 3},
    "whole heads, tied": {"rotary_pct": 1.0, "tie_word_embeddings": True, "hidden_size": 40, "num_attention_heads": 5},
    "no attention bias, tanh gelu": {"attention_bias": False, "hidden_act": "gelu_new", "rotary_emb_base": 3000},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
    "yarn, sequential": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "rotary_pct": 0.75,
        "use_parallel_residual": False,
    },
}
HEADS = {
    "classification": (GPTNeoXForSequenceClassification, {"num_labels": 3}),
    "scalar": (GPTNeoXForSequenceClassification, {"num_labels": 1}),
    "token_classification": (GPTNeoXForTokenClassification, {"num_labels": 5}),
    "span": (GPTNeoXForQuestionAnswering, {}),
    "none": (GPTNeoXModel, {}),
}


def reference(seed: int = 0, kind: Any = GPTNeoXForCausalLM, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = kind(GPTNeoXConfig(**json.loads(json.dumps({**SIZES, "pad_token_id": 0, **options}))))
    in_memory = model.named_parameters
    # What transformers 5 calls lm_head in memory is embed_out in its files, as it has always been.
    model.named_parameters = lambda *given, **named: (
        (name.replace("lm_head.", "embed_out."), parameter) for name, parameter in in_memory(*given, **named)
    )
    return model


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert GPT_NEOX.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == head


def test_older_files_hold_masks_and_frequencies(tmp_path: Path) -> None:
    theirs = shaken(reference())
    opened(theirs, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, 128, 128).tril()
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert "embed_out.weight" in tensors
    check_result(theirs, load_weights(tmp_path)[0])


@pytest.mark.parametrize(
    "changes",
    [{"residual": "sequential"}, {"rope_share": 0.5}, {"activation": "gelu_tanh"}, {"rope_theta": 9e3}],
    ids=str,
)
def test_broken_control_a_wrong_config_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_heads_stacked_otherwise_are_seen(tmp_path: Path) -> None:
    """Query, key and value of all heads, one after the other, instead of head by head."""
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    attention = model.stack.blocks[0].attention
    with torch.no_grad():
        stacked = theirs.gpt_neox.layers[0].attention.query_key_value.weight
        for part, linear in zip(stacked.chunk(3), (attention.query, attention.key, attention.value), strict=True):
            linear.weight.copy_(part)
    assert fails(lambda: check_result(theirs, model))
    assert fails(lambda: check_generation(theirs, model))


def test_keys_left_out() -> None:
    assert GPT_NEOX.read_config({}, "test") == GPT_NEOX.read_config(GPTNeoXConfig().to_dict(), "test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_parallel_residual": 2}, "use_parallel_residual is 2"),
        ({"attention_bias": "yes"}, 'attention_bias is "yes"'),
        ({"hidden_act": "gelu_fast"}, 'hidden_act is "gelu_fast"'),
        ({"rotary_pct": 0.0}, "rope_share"),
        ({"rotary_pct": 1.5}, "rope_share"),
        ({"rotary_pct": "all"}, "rope_share"),
        ({"rotary_pct": 0.01}, "must be even and not 0"),
        ({"num_attention_heads": 7}, "heads=7 does not divide width=6144"),
        ({"hidden_size": None, "intermediate_size": "wide"}, "mlp_width"),
        ({"architectures": "GPTNeoXJapanese"}, "architectures"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        GPT_NEOX.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_gpt_neox_cannot_be() -> None:
    config = GPT_NEOX.read_config(SIZES, "test")
    assert GPT_NEOX.obstacles(config) == []
    assert GPT_NEOX.obstacles(config.changed(bias="none")) == ["bias must be all (is none)"]
    assert GPT_NEOX.obstacles(config.changed(kv_heads=1)) == ["kv_heads must be 4 (is 1)"]
