"""mBART against `transformers`: config, weights, results, gradients, generated tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MBartConfig,
    MBartForConditionalGeneration,
    MBartForQuestionAnswering,
    MBartForSequenceClassification,
    MBartModel,
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
from trivium.errors import UserError
from trivium.families.bart import BART
from trivium.families.mbart import MBART

SHAPES = {
    "plain": bart_keys(32, 4, 48, 2, 2, decoder_start_token_id=2),
    "scaled, relu, deep encoder": bart_keys(
        24, 3, 40, 3, 1, scale_embedding=True, activation_function="relu", decoder_start_token_id=7
    ),
    "deep decoder": bart_keys(20, 2, 33, 1, 3, vocab_size=83, decoder_start_token_id=0, activation_function="silu"),
}


def published(name: str, kind: Any = MBartForConditionalGeneration, **more: Any) -> Any:
    torch.manual_seed(1)
    return shaken_bias(parity.shaken(kind(MBartConfig(**{**SHAPES[name], **more}))))


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name)
    model, config = parity.check_family(reference, tmp_path)
    assert config.embedding_scale == (24**0.5 if "scaled" in name else 1.0)
    check_seq2seq_loss(reference, model, shifted_by_reference=False)


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
    parity.check_family(published("plain", MBartModel), tmp_path / "none")
    parity.check_family(published("plain", MBartForQuestionAnswering), tmp_path / "span")
    for labels in (1, 3):
        reference = published("plain", MBartForSequenceClassification, num_labels=labels)
        check_class_head(reference, tmp_path / f"classes-{labels}", monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{"embedding_scale": 1.0}, {"norm_eps": 1e-2}, {"activation": "silu"}, {"attention_scale": 1.0}], ids=str
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = published("scaled, relu, deep encoder")
    model, _ = parity.opened(reference, tmp_path)
    parity.check_result(reference, model)
    assert parity.fails(lambda: parity.check_result(reference, parity.rebuilt(model, **changes)))


def test_broken_control_swapped_last_norms_are_seen(tmp_path: Path) -> None:
    reference = published("plain")
    model, _ = parity.opened(reference, tmp_path)
    model.encoder.norm, model.decoder.norm = model.decoder.norm, model.encoder.norm
    with torch.no_grad():
        assert parity.fails(lambda: parity.check_result(reference, model))
    assert parity.fails(lambda: parity.check_gradients(reference, model, tmp_path))
    assert parity.fails(lambda: check_seq2seq_loss(reference, model, shifted_by_reference=False))
    assert parity.fails(lambda: parity.check_greedy(reference, model))
    assert parity.fails(lambda: check_search(reference, model, **SEARCHES[3]))


# ------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("name", SHAPES)
def test_config_survives_both_ways(name: str) -> None:
    check_config_both_ways(MBART, MBartConfig(**SHAPES[name]), "MBartForConditionalGeneration")


def test_keys_left_out_mean_what_they_mean_in_transformers() -> None:
    config, theirs = MBART.read_config({}, "test"), MBartConfig()
    assert (config.vocab_size, config.width, config.heads) == (theirs.vocab_size, theirs.d_model, 16)
    assert (config.layers, config.decoder_layers, config.mlp_width) == (12, 12, theirs.encoder_ffn_dim)
    assert config.decoder_start_id == theirs.bos_token_id == 0
    assert MBART.read_config({"decoder_start_token_id": None, "bos_token_id": 5}, "test").decoder_start_id == 5


def test_a_fresh_model_is_an_mbart_and_no_bart() -> None:
    config = check_fresh_model_is_a_member(MBART)
    assert BART.obstacles(config) == ["norm_placement must be post (is pre)"]
    check_fresh_model_is_a_member(MBART, embedding_scale=0, decoder_layers=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"decoder_attention_heads": 8},
            "encoder_attention_heads is 16 and decoder_attention_heads is 8: they must be",
        ),
        ({"encoder_ffn_dim": 8}, "encoder_ffn_dim is 8 and decoder_ffn_dim is 4096: they must be equal"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"activation_function": "quick_gelu"}, 'activation_function is "quick_gelu": known are'),
        ({"architectures": ["MBartForCausalLM"]}, "MBartForCausalLM"),
        ({"architectures": "MBartModel\n" * 99}, "architectures"),
        ({"d_model": "wide"}, "width"),
        ({"decoder_layers": -2}, "decoder_layers"),
        ({"decoder_start_token_id": "en_XX"}, "decoder_start_id"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
    ids=str,
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"DIR/config\.json") as caught:
        MBART.read_config(changes, "DIR/config.json")
    assert words in str(caught.value) and len(str(caught.value)) < 600
