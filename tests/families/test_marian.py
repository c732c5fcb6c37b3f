"""Marian, the Transformer of 2017, against `transformers`: config, weights, results, gradients, generated tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianModel, MarianMTModel

from families import parity
from families.two_stacks import (
    SEARCHES,
    bart_keys,
    check_config_both_ways,
    check_fresh_model_is_a_member,
    check_search,
    check_seq2seq_loss,
    shaken_bias,
    uncached,
)
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families.marian import MARIAN
from trivium.models.build import build_model
from trivium.models.config import ModelConfig

IDS = {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 2}
SHAPES = {
    "scaled, relu": bart_keys(32, 4, 48, 2, 2, **IDS, scale_embedding=True, activation_function="relu"),
    "swish, deep encoder": bart_keys(24, 3, 40, 3, 1, **IDS, scale_embedding=True, activation_function="swish"),
    "not scaled, deep decoder, begins with padding": bart_keys(
        20, 2, 33, 1, 3, **{**IDS, "decoder_start_token_id": 1}, vocab_size=83, activation_function="gelu"
    ),
}


def published(name: str, kind: Any = MarianMTModel, **more: Any) -> Any:
    torch.manual_seed(1)
    return shaken_bias(parity.shaken(kind(MarianConfig(**{**SHAPES[name], **more}))))


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    reference = published(name)
    model, config = parity.check_family(reference, tmp_path)
    assert config.positions == "sinusoidal" and config.norm_placement == "post"
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


def test_bare_model_equals_that_of_transformers(tmp_path: Path) -> None:
    parity.check_family(published("scaled, relu", MarianModel), tmp_path)


@torch.no_grad()
def test_tables_of_sines_in_a_file_are_ours(tmp_path: Path) -> None:
    """Older files hold them; they are the same numbers to fp32 rounding, as far as the longest position."""
    reference = MarianMTModel(MarianConfig(**{**SHAPES["scaled, relu"], "max_position_embeddings": 1024}))
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for stack in ("encoder", "decoder"):
        tensors[f"model.{stack}.embed_positions.weight"] = reference.model.encoder.embed_positions.weight.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    model, config = load_weights(tmp_path)
    for part in (model.encoder, model.decoder):
        embedded = part._embedded(torch.zeros(1024, config.width), torch.arange(1024), None)
        assert (embedded - reference.model.encoder.embed_positions.weight).abs().max() <= 1e-7


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "none"},
        {"embedding_scale": 1.0},
        {"norm_eps": 1e-2},
        {"activation": "silu"},
        {"attention_scale": 1.0},
    ],
    ids=str,
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = published("scaled, relu")
    model, _ = parity.opened(reference, tmp_path)
    parity.check_result(reference, model)
    assert parity.fails(lambda: parity.check_result(reference, parity.rebuilt(model, **changes)))


def test_broken_control_swapped_blocks_are_seen(tmp_path: Path) -> None:
    reference = published("scaled, relu")
    model, _ = parity.opened(reference, tmp_path)
    blocks = model.decoder.blocks
    blocks[0].cross, blocks[1].cross = blocks[1].cross, blocks[0].cross
    with torch.no_grad():
        assert parity.fails(lambda: parity.check_result(reference, model))
    assert parity.fails(lambda: parity.check_gradients(reference, model, tmp_path))
    assert parity.fails(lambda: check_seq2seq_loss(reference, model))
    assert parity.fails(lambda: parity.check_greedy(reference, model))
    assert parity.fails(lambda: check_search(reference, model, **SEARCHES[3]))


# ------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("name", SHAPES)
def test_config_survives_both_ways(name: str) -> None:
    keys = {**SHAPES[name], "activation_function": SHAPES[name]["activation_function"].replace("swish", "silu")}
    check_config_both_ways(MARIAN, MarianConfig(**keys), "MarianMTModel")
    assert MARIAN.read_config(SHAPES[name], "test") == MARIAN.read_config(keys, "test")


def test_keys_left_out_mean_what_they_mean_in_transformers() -> None:
    config, theirs = MARIAN.read_config({}, "test"), MarianConfig()
    assert (config.vocab_size, config.width, config.heads) == (theirs.vocab_size, theirs.d_model, 16)
    assert (config.layers, config.decoder_layers, config.mlp_width) == (12, 12, theirs.encoder_ffn_dim)
    assert (config.decoder_start_id, config.activation) == (theirs.decoder_start_token_id, "gelu")


def test_a_fresh_model_is_the_transformer_of_2017() -> None:
    check_fresh_model_is_a_member(MARIAN)
    base = ModelConfig(vocab_size=37_000, width=512, layers=6, heads=8, mlp_width=2048, **MARIAN.shape)
    assert MARIAN.obstacles(base) == []
    assert (base.layers, base.decoder_layers, base.head_width, base.embedding_scale) == (6, 6, 64, 512**0.5)
    assert (base.norm, base.norm_placement, base.positions) == ("layernorm", "post", "sinusoidal")
    assert (base.activation, base.mlp, base.bias, base.tied_embeddings) == ("relu", "plain", "all", True)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_model(base).parameters())
    attention, mlp, norm = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 2 * 512
    # The base model of the paper's table 3 (65 million), and the bias of the token scores.
    assert parameters == 37_000 * 512 + 6 * (3 * attention + 2 * mlp + 5 * norm) + 37_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is false"),
        ({"decoder_vocab_size": 9}, "vocab_size is 58101 and decoder_vocab_size is 9: they must be equal"),
        (
            {"decoder_attention_heads": 8},
            "encoder_attention_heads is 16 and decoder_attention_heads is 8: they must be",
        ),
        ({"encoder_ffn_dim": 8}, "encoder_ffn_dim is 8 and decoder_ffn_dim is 4096: they must be equal"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"activation_function": "tanh"}, 'activation_function is "tanh": known are'),
        ({"architectures": ["MarianForCausalLM"]}, "MarianForCausalLM"),
        ({"d_model": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 3}, "width=33 must be even"),
        ({"vocab_size": 100}, "decoder_start_id=58100"),
        ({"vocab_size": {}}, "vocab_size"),
        ({"dropout": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"DIR/config\.json") as caught:
        MARIAN.read_config(changes, "DIR/config.json")
    assert words in str(caught.value) and len(str(caught.value)) < 600
