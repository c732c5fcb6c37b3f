"""T5, T5 1.1 and Flan-T5 against `transformers`: config, weights, results, gradients, generated tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5Model,
)

from families import parity
from families.two_stacks import (
    SEARCHES,
    check_class_head,
    check_config_both_ways,
    check_fresh_model_is_a_member,
    check_search,
    check_seq2seq_loss,
    uncached,
)
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.t5 import T5

COMMON = {"decoder_start_token_id": 0, "dropout_rate": 0.0}
# Keys as their files state them; `tie_word_embeddings` false is a T5 1.1.
SHAPES: dict[str, dict[str, Any]] = {
    "original": {"vocab_size": 61, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 40, "num_layers": 2},
    "original, narrow heads, few distances": {
        "vocab_size": 83,
        "d_model": 24,
        "num_heads": 3,
        "d_kv": 5,
        "d_ff": 56,
        "num_layers": 1,
        "num_decoder_layers": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 11,
        "feed_forward_proj": "gated-silu",
    },
    "1.1": {
        "vocab_size": 70,
        "d_model": 20,
        "num_heads": 5,
        "d_kv": 6,
        "d_ff": 33,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "layer_norm_epsilon": 1e-5,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "1.1, plain gelu": {
        "vocab_size": 50,
        "d_model": 16,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "feed_forward_proj": "gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 3,
    },
}


def published(name: str, folder: Path, kind: Any = T5ForConditionalGeneration, **more: Any) -> Any:
    """A model of `transformers`, its output matrix being its own where it is in the published files."""
    torch.manual_seed(1)
    settings = {**COMMON, **SHAPES[name], **more}
    model = parity.shaken(kind(T5Config(**settings)))
    if settings.get("tie_word_embeddings", True) or kind is not T5ForConditionalGeneration:
        return model
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 0.3 * torch.randn(tensors["shared.weight"].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return kind.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name, tmp_path / "untied")
    model, config = parity.check_family(reference, tmp_path)
    assert config.tied_embeddings is ("1.1" not in name)
    assert config.logit_scale == (1.0 if "1.1" in name else config.width**-0.5)
    check_seq2seq_loss(reference, model)


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name, tmp_path / "untied")
    model, _ = parity.opened(reference, tmp_path / "theirs")
    parity.check_greedy(uncached(reference), model)


@pytest.mark.parametrize("settings", SEARCHES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_searched_texts_are_those_of_transformers(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reference = published(name, tmp_path / "untied", vocab_size=320)
    model, _ = parity.opened(reference, tmp_path / "theirs")
    check_search(uncached(reference), model, **settings)


@pytest.mark.parametrize("name", ["original", "1.1"])
def test_other_heads_equal_those_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity.check_family(published(name, tmp_path, T5Model), tmp_path / "none")
    parity.check_family(published(name, tmp_path, T5ForQuestionAnswering), tmp_path / "span")
    for labels in (1, 4):
        reference = published(name, tmp_path, T5ForSequenceClassification, num_labels=labels)
        check_class_head(reference, tmp_path / f"classes-{labels}", monkeypatch)


@torch.no_grad()
def test_output_matrix_left_to_the_embeddings(tmp_path: Path) -> None:
    """A T5 1.1 first trained in `transformers` 5, where the two are one: the file holds no lm_head."""
    reference = parity.shaken(T5ForConditionalGeneration(T5Config(**COMMON, **SHAPES["1.1"])))
    model, config = parity.opened(reference, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert not config.tied_embeddings
    parity.check_result(reference, model)


def test_a_bare_original_becomes_one_that_scores_tokens(tmp_path: Path) -> None:
    """The factor 1 / sqrt(D) is not lost where there was no head."""
    bare = published("original", tmp_path, T5Model)
    bare.save_pretrained(tmp_path / "bare")
    model, config = load_weights(tmp_path / "bare", head="lm")
    assert config.logit_scale == config.width**-0.5
    with torch.no_grad():
        parity.check_result(T5ForConditionalGeneration.from_pretrained(tmp_path / "bare").eval(), model)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"relative_max_distance": 64},
        {"attention_scale": 0.0},
        {"logit_scale": 1.0},
        {"norm_eps": 1e-2},
        {"activation": "gelu"},
    ],
    ids=str,
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = published("original, narrow heads, few distances", tmp_path)
    model, _ = parity.opened(reference, tmp_path)
    parity.check_result(reference, model)
    assert parity.fails(lambda: parity.check_result(reference, parity.rebuilt(model, **changes)))


def test_broken_control_swapped_tables_are_seen(tmp_path: Path) -> None:
    reference = published("original", tmp_path)
    model, _ = parity.opened(reference, tmp_path)
    model.encoder.relative, model.decoder.relative = model.decoder.relative, model.encoder.relative
    with torch.no_grad():
        assert parity.fails(lambda: parity.check_result(reference, model))
    assert parity.fails(lambda: parity.check_gradients(reference, model, tmp_path))
    assert parity.fails(lambda: check_seq2seq_loss(reference, model))
    assert parity.fails(lambda: parity.check_greedy(reference, model))
    assert parity.fails(lambda: check_search(reference, model, **SEARCHES[3]))


# ------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("name", SHAPES)
def test_config_survives_both_ways(name: str) -> None:
    config = check_config_both_ways(T5, T5Config(**{**COMMON, **SHAPES[name]}), "T5ForConditionalGeneration")
    assert config.kind == "encoder-decoder" and config.attention_scale == 1.0


def test_keys_left_out_mean_what_they_mean_in_transformers() -> None:
    config, theirs = T5.read_config({}, "test"), T5Config()
    assert (config.vocab_size, config.width, config.heads) == (theirs.vocab_size, theirs.d_model, theirs.num_heads)
    assert (config.layers, config.decoder_layers, config.head_width) == (6, 6, theirs.d_kv)
    assert (config.mlp_width, config.mlp, config.activation) == (theirs.d_ff, "plain", theirs.dense_act_fn)
    assert (config.norm_eps, config.dropout) == (theirs.layer_norm_epsilon, theirs.dropout_rate)
    assert config.tied_embeddings and config.logit_scale == 512**-0.5 and config.decoder_start_id == 0


@pytest.mark.parametrize(
    ("stated", "mlp", "activation"),
    [
        ({"feed_forward_proj": "gated-gelu"}, "gated", "gelu_tanh"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gated", "gelu"),
        ({"feed_forward_proj": "gelu"}, "plain", "gelu"),
        ({"feed_forward_proj": "gelu_new"}, "plain", "gelu_tanh"),
        ({"feed_forward_proj": "gated-relu"}, "gated", "relu"),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "gated", "relu"),
    ],
    ids=str,
)
def test_feed_forward_is_read_as_by_transformers(stated: dict[str, Any], mlp: str, activation: str) -> None:
    config = T5.read_config(stated, "test")
    assert (config.mlp, config.activation) == (mlp, activation)
    for theirs in (T5Config(**stated), T5Config(**T5.write_config(config))):
        assert theirs.is_gated_act is (mlp == "gated")
        assert T5.read_config({"feed_forward_proj": theirs.dense_act_fn}, "test").activation == activation


@pytest.mark.parametrize("stated", [{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": True}], ids=str)
@pytest.mark.parametrize("scale", [None, True, False])
def test_head_is_read_as_by_transformers(stated: dict[str, Any], scale: bool | None) -> None:
    values = stated if scale is None else {**stated, "scale_decoder_outputs": scale}
    config, theirs = T5.read_config(values, "test"), T5Config(**values)
    assert (config.logit_scale != 1.0) is theirs.scale_decoder_outputs
    assert T5.obstacles(config) == []


def test_a_fresh_model_is_a_t5() -> None:
    config = check_fresh_model_is_a_member(T5)
    assert config.mlp == "gated" and not config.tied_embeddings
    original = {"mlp": "plain", "activation": "relu", "tied_embeddings": True, "logit_scale": 0}
    check_fresh_model_is_a_member(T5, **original)
    assert T5.obstacles(config.changed(bias="all", kv_heads=1)) == [
        "kv_heads must be 3 (is 1)",
        "bias must be none (is all)",
    ]
    assert T5.obstacles(config.changed(tied_embeddings=True)) == ["tied_embeddings must be False (is True)"]


def test_dropout_of_attention_is_that_of_the_rest_unless_stated() -> None:
    config = T5.read_config({"dropout_rate": 0.2}, "test")
    assert (config.dropout, config.attention_dropout) == (0.2, 0.2)
    written = T5.write_config(config.changed(attention_dropout=0.0))
    assert T5.read_config(written, "test").attention_dropout == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feed_forward_proj": "gated-gelu-new"}, 'feed_forward_proj is "gated-gelu-new"'),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj"),
        ({"feed_forward_proj": "quick_gelu"}, 'feed_forward_proj is "quick_gelu": known are'),
        ({"dense_act_fn": {}}, "dense_act_fn"),
        ({"is_gated_act": "yes"}, 'is_gated_act is "yes"'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"'),
        ({"scale_decoder_outputs": 3}, "scale_decoder_outputs is 3"),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"num_heads": 0}, "heads"),
        ({"d_model": "wide"}, "width"),
        ({"d_model": -4}, "width"),
        ({"num_layers": 10**30}, "layers"),
        ({"relative_attention_num_buckets": 6}, "relative_buckets=6"),
        ({"relative_attention_max_distance": 16}, "relative_max_distance"),
        ({"decoder_start_token_id": 32_128}, "decoder_start_id=32128"),
        ({"decoder_start_token_id": [0]}, "decoder_start_id"),
        ({"dropout_rate": "some"}, "dropout"),
        ({"layer_norm_epsilon": 0}, "norm_eps"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
    ids=str,
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"DIR/config\.json") as caught:
        T5.read_config(changes, "DIR/config.json")
    assert words in str(caught.value) and len(str(caught.value)) < 600
