"""BART against `transformers`: config, weights, results, gradients, generated tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
)

from families import parity
from families.two_stacks import (
    SEARCHES,
    bart_keys,
    check_class_head,
    check_config_both_ways,
    check_fresh_model_is_a_member,
    check_search,
    check_seq2seq_loss,
    shaken_bias,
    uncached,
)
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.bart import BART

SHAPES = {
    "plain": bart_keys(32, 4, 48, 2, 2),
    "scaled, relu, deep encoder": bart_keys(24, 3, 40, 3, 1, scale_embedding=True, activation_function="relu"),
    "deep decoder": bart_keys(
        20, 2, 33, 1, 3, vocab_size=83, decoder_start_token_id=0, activation_function="gelu_pytorch_tanh"
    ),
}


def published(name: str, kind: Any = BartForConditionalGeneration, **more: Any) -> Any:
    torch.manual_seed(1)
    return shaken_bias(parity.shaken(kind(BartConfig(**{**SHAPES[name], **more}))))


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name)
    model, config = parity.check_family(reference, tmp_path)
    assert config.embedding_scale == (24**0.5 if "scaled" in name else 1.0)
    check_seq2seq_loss(reference, model)


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name)
    model, _ = parity.opened(reference, tmp_path)
    parity.check_greedy(uncached(reference), model)


@pytest.mark.parametrize("settings", SEARCHES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_searched_texts_are_those_of_transformers(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reference = published(name, vocab_size=320)
    model, _ = parity.opened(reference, tmp_path / "theirs")
    check_search(uncached(reference), model, **settings)


def test_other_heads_equal_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity.check_family(published("plain", BartModel), tmp_path / "none")
    parity.check_family(published("plain", BartForQuestionAnswering), tmp_path / "span")
    for labels in (1, 3):
        reference = published("plain", BartForSequenceClassification, num_labels=labels)
        check_class_head(reference, tmp_path / f"classes-{labels}", monkeypatch)


@torch.no_grad()
def test_files_with_every_copy_or_without_the_bare_prefix_are_read(tmp_path: Path) -> None:
    reference = published("plain")
    model, _ = parity.opened(reference, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["model.shared.weight"]
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = table.clone()
    tensors["model.encoder.version"] = torch.tensor([3.0])
    save_file(tensors, tmp_path / "model.safetensors")
    again, _ = load_weights(tmp_path)
    parity.check_result(reference, again)
    tensors["lm_head.weight"] = table + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_weights(tmp_path)
    bare = BartModel(reference.config)
    bare.load_state_dict(reference.model.state_dict())
    bare.save_pretrained(tmp_path / "bare")
    again, config = load_weights(tmp_path / "bare", head="lm")
    assert config == model.config
    again.head.bias.copy_(model.head.bias)
    parity.check_result(reference, again)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{"embedding_scale": 1.0}, {"norm_eps": 1e-2}, {"activation": "silu"}, {"attention_scale": 1.0}],
    ids=str,
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = published("scaled, relu, deep encoder")
    model, _ = parity.opened(reference, tmp_path)
    parity.check_result(reference, model)
    assert parity.fails(lambda: parity.check_result(reference, parity.rebuilt(model, **changes)))


def test_broken_control_swapped_attentions_and_a_lost_bias_are_seen(tmp_path: Path) -> None:
    reference = published("plain")
    model, _ = parity.opened(reference, tmp_path)
    bias = model.head.bias.detach().clone()
    model.head.bias.data.zero_()
    with torch.no_grad():
        assert parity.fails(lambda: parity.check_result(reference, model))
    model.head.bias.data.copy_(bias)
    block = model.decoder.blocks[1]
    block.attention.query, block.cross.query = block.cross.query, block.attention.query
    with torch.no_grad():
        assert parity.fails(lambda: parity.check_result(reference, model))
    assert parity.fails(lambda: parity.check_gradients(reference, model, tmp_path))
    assert parity.fails(lambda: check_seq2seq_loss(reference, model))
    assert parity.fails(lambda: parity.check_greedy(reference, model))
    assert parity.fails(lambda: check_search(reference, model, **SEARCHES[3]))


# ------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("name", SHAPES)
def test_config_survives_both_ways(name: str) -> None:
    check_config_both_ways(BART, BartConfig(**SHAPES[name]), "BartForConditionalGeneration")
    classes = BartConfig(**SHAPES[name], id2label={0: "no", 1: "yes", 2: "perhaps"})
    config = check_config_both_ways(BART, classes, "BartForSequenceClassification")
    assert config.labels == ("no", "yes", "perhaps") and config.pooling == "last"


def test_keys_left_out_mean_what_they_mean_in_transformers() -> None:
    config, theirs = BART.read_config({}, "test"), BartConfig()
    assert (config.vocab_size, config.width, config.heads) == (theirs.vocab_size, theirs.d_model, 16)
    assert (config.layers, config.decoder_layers, config.mlp_width) == (12, 12, theirs.encoder_ffn_dim)
    assert (config.max_positions, config.activation) == (theirs.max_position_embeddings, "gelu")
    assert (config.dropout, config.attention_dropout) == (theirs.dropout, theirs.attention_dropout)
    assert config.decoder_start_id == theirs.decoder_start_token_id
    classes = BART.read_config({"architectures": ["BartForSequenceClassification"]}, "test")
    assert len(classes.labels) == theirs.num_labels == 3


def test_a_fresh_model_is_a_bart() -> None:
    config = check_fresh_model_is_a_member(BART)
    assert (config.position_offset, config.norm_placement, config.head_bias) == (2, "post", True)
    check_fresh_model_is_a_member(BART, embedding_scale=0, decoder_layers=5)
    assert BART.obstacles(config.changed(norm_placement="pre", head_bias=False, embedding_scale=2.0)) == [
        "norm_placement must be post (is pre)",
        f"embedding_scale must be {24**0.5} (is 2.0)",
        "head_bias must be True (is False)",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"encoder_attention_heads": 8},
            "encoder_attention_heads is 8 and decoder_attention_heads is 16: they must be",
        ),
        ({"decoder_ffn_dim": 8}, "encoder_ffn_dim is 4096 and decoder_ffn_dim is 8: they must be equal"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"scale_embedding": "yes"}, 'scale_embedding is "yes"'),
        ({"activation_function": "mish"}, 'activation_function is "mish": known are'),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"architectures": ["BartForCausalLM"]}, "BartForCausalLM"),
        ({"d_model": "wide"}, "width"),
        ({"d_model": 0}, "width"),
        ({"d_model": -4, "scale_embedding": True}, "width"),
        ({"encoder_layers": 10**30}, "layers"),
        ({"max_position_embeddings": -1}, "max_positions"),
        ({"encoder_attention_heads": 7, "decoder_attention_heads": 7}, "heads=7 does not divide width=1024"),
        ({"decoder_start_token_id": 60_000}, "decoder_start_id=60000"),
        ({"architectures": ["BartForSequenceClassification"], "num_labels": 10**9}, "num_labels is 1000000000"),
        ({"architectures": ["BartForSequenceClassification"], "id2label": {"1": "x"}}, "id2label"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=str,
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"DIR/config\.json") as caught:
        BART.read_config(changes, "DIR/config.json")
    assert words in str(caught.value) and len(str(caught.value)) < 600
