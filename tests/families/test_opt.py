"""Our decoder against the OPT classes of transformers: every option, every head, both ways; and its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification, OPTModel

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.opt import OPT

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "opt": {},
    "norms after": {"do_layer_norm_before": False, "num_hidden_layers": 3},
    "untied, no biases": {"tie_word_embeddings": False, "enable_bias": False, "num_attention_heads": 2},
    "norms after, gelu": {"do_layer_norm_before": False, "activation_function": "gelu", "vocab_size": 97},
    "norms after, untied, no biases": {
        "do_layer_norm_before": False,
        "enable_bias": False,
        "tie_word_embeddings": False,
        "hidden_size": 40,
        "max_position_embeddings": 50,
    },
}
HEADS = {
    "classification": (OPTForSequenceClassification, {"num_labels": 3}),
    "scalar": (OPTForSequenceClassification, {"num_labels": 1}),
    "span": (OPTForQuestionAnswering, {}),
    "none": (OPTModel, {}),
}


def reference(seed: int = 0, kind: Any = OPTForCausalLM, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(OPTConfig(**{**SIZES, "pad_token_id": 0, **options}))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert OPT.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == head


def test_files_of_the_bare_model(tmp_path: Path) -> None:
    theirs = shaken(reference())
    opened(theirs, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    check_result(theirs, load_weights(tmp_path)[0])


@pytest.mark.parametrize("changes", [{"activation": "gelu"}, {"norm_eps": 1e-2}, {"attention_scale": 1.0}], ids=str)
def test_broken_control_a_wrong_config_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_positions_that_begin_at_the_first_row_are_seen(tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    with torch.no_grad():
        model.stack.positions.weight.copy_(model.stack.positions.weight.roll(2, 0))
    assert fails(lambda: check_result(theirs, model))
    assert fails(lambda: check_generation(theirs, model))


def test_broken_control_norms_in_the_wrong_place_are_seen(tmp_path: Path) -> None:
    theirs = shaken(reference(do_layer_norm_before=False))
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, norm_placement="pre")))


def test_keys_left_out() -> None:
    assert OPT.read_config({}, "test") == OPT.read_config(OPTConfig().to_dict(), "test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"word_embed_proj_dim": 512}, "word_embed_proj_dim is 512: it must be hidden_size, 768"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is false"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm is true"),
        ({"do_layer_norm_before": "yes"}, 'do_layer_norm_before is "yes"'),
        ({"enable_bias": 3}, "enable_bias is 3"),
        ({"activation_function": 1}, "activation_function is 1"),
        ({"architectures": ["OPTForTokenClassification"]}, "architectures is"),
        ({"num_attention_heads": 7}, "heads=7 does not divide width=768"),
        ({"ffn_dim": 0.5}, "mlp_width"),
        ({"hidden_size": "x" * 9999}, "width"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        OPT.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_an_opt_cannot_be() -> None:
    config = OPT.read_config(SIZES, "test")
    assert OPT.obstacles(config) == []
    assert OPT.obstacles(config.changed(norm_eps=1e-6)) == ["norm_eps must be 1e-05 (is 1e-06)"]
    assert OPT.obstacles(config.changed(position_offset=0)) == ["position_offset must be 2 (is 0)"]
    assert OPT.obstacles(config.changed(norm_placement="sandwich")) == ["norm_placement must be post (is sandwich)"]
