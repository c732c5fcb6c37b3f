"""ModernBERT against `transformers`: all heads, windows shorter than the text, both rotary bases, older files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig

from families.encoder_samples import (
    Sample,
    check_config,
    check_fresh,
    check_heads,
    check_hostile,
    check_names,
    exchanged,
    padded,
    samples,
    some_of_each,
    with_changes,
)
from families.parity import check_family, check_result, fails, opened, random_ids, relative, shaken
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.families.modernbert import MODERNBERT

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
SIZES: tuple[dict[str, Any], ...] = (
    {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "local_attention": 8,
        **IDS,
    },
    {
        "vocab_size": 97,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 51,
        "layer_types": ["sliding_attention", "full_attention"],
        "local_attention": 2,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "classifier_pooling": "mean",
        "hidden_activation": "silu",
        "classifier_activation": "silu",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        **IDS,
    },
    {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 9,
        "mlp_bias": True,
        "norm_eps": 1e-4,
        "attention_dropout": 0.1,
        **IDS,
    },
)
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
    "rope_theta": 900.0,
}
SAMPLES = samples(MODERNBERT, ModernBertConfig, SIZES)
LM = Sample(MODERNBERT, ModernBertConfig, "lm", SIZES[0])


@pytest.mark.parametrize("sample", some_of_each(SAMPLES), ids=str)
def test_equals_transformers(sample: Sample, tmp_path: Path) -> None:
    check_family(sample.reference(), tmp_path)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_config_and_names(sample: Sample) -> None:
    check_config(sample)
    check_names(sample)


def test_every_head_can_be_put_on() -> None:
    for sample in SAMPLES[: len(MODERNBERT.heads)]:
        check_heads(sample)
    check_fresh(MODERNBERT)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False, "decoder_bias": False},
        {"decoder_bias": False, "local_attention": 0},
        {"local_attention": 7},
        {"local_attention": 44},  # one position less than the text sees
        {"layer_types": ["sliding_attention"] * 5},
        {"layer_types": ["full_attention"] * 5, "local_attention": 128},
        {"attention_bias": True},
        {
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            }
        },
    ],
    ids=str,
)
def test_options_of_the_language_model(changes: dict[str, Any], tmp_path: Path) -> None:
    sample = replace(LM, options={**SIZES[0], **changes})
    if changes != {"local_attention": 7}:  # written as 6, which sees as much
        check_config(sample)
    check_names(sample)
    check_family(sample.reference(), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("head", ["lm", "classification"])
@pytest.mark.parametrize("size", SIZES[:2], ids=["first", "mean"])
def test_a_padded_batch(head: Any, size: dict[str, Any], tmp_path: Path) -> None:
    reference = shaken(Sample(MODERNBERT, ModernBertConfig, head, size).reference())
    model, config = opened(reference, tmp_path)
    ids, real = padded(random_ids(config, 3, 21), (21, 9, 14))
    expected, found = reference(ids, attention_mask=real).logits, model(ids, segments=real.int())
    if head == "lm":
        expected, found = expected[real > 0], found[real > 0]
    assert relative(found, expected) <= 1e-5


# ---------------------------------------------------------------------------------------------------- broken controls


@pytest.mark.parametrize(
    ("first", "second"),
    [("mlp.gate", "mlp.up"), ("attention.key", "attention.value"), ("head.norm", "stack.norm")],
    ids=str,
)
def test_broken_control_exchanged_names_are_seen(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = shaken(LM.reference())
    assert not fails(lambda: check_result(reference, opened(reference, tmp_path / "right")[0]))
    monkeypatch.setitem(FAMILIES, "modernbert", replace(MODERNBERT, weights=exchanged(MODERNBERT, first, second)))
    assert fails(lambda: check_result(reference, opened(reference, tmp_path / "wrong")[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4},
        {"sliding_window": 6},
        {"full_attention_layers": (0,)},
        {"rope_theta": 10_000.0},
        {"local_rope_theta": 160_000.0},
        {"activation": "gelu_tanh"},
        {"head_hidden": "activation"},
    ],
    ids=str,
)
def test_broken_control_a_wrong_option_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = shaken(LM.reference())
    model, config = opened(reference, tmp_path)
    assert (config.sliding_window, config.full_attention_layers) == (5, (0, 3))
    assert not fails(lambda: check_result(reference, with_changes(model)))
    assert fails(lambda: check_result(reference, with_changes(model, **changes)))


# -------------------------------------------------------------------------------------------------------- config.json


def test_keys_left_out_mean_what_they_mean_to_transformers() -> None:
    ours = MODERNBERT.read_config({"architectures": None, "hidden_size": None}, "config.json")
    assert ours == MODERNBERT.read_config(ModernBertConfig().to_dict(), "config.json")
    assert (ours.width, ours.layers, ours.sliding_window, ours.max_positions) == (768, 22, 65, 8192)
    assert ours.full_attention_layers == (0, 3, 6, 9, 12, 15, 18, 21)
    assert (ours.rope_theta, ours.local_rope_theta, ours.head_bias) == (160_000.0, 10_000.0, True)


def test_files_from_before_transformers_5_are_read_and_written() -> None:
    old = {
        "global_attn_every_n_layers": 2,
        "num_hidden_layers": 5,
        "global_rope_theta": 9_000.0,
        "local_rope_theta": 700.0,
        "local_attention": 64,
    }
    ours = MODERNBERT.read_config(old, "config.json")
    assert ours == MODERNBERT.read_config(ModernBertConfig(**old).to_dict(), "config.json")
    assert (ours.rope_theta, ours.local_rope_theta, ours.sliding_window) == (9_000.0, 700.0, 33)
    assert ours.full_attention_layers == (0, 2, 4)
    written = MODERNBERT.write_config(ours)
    assert {key: written[key] for key in old} == old
    assert MODERNBERT.read_config({key: written[key] for key in old}, "config.json") == ours


def test_layers_that_older_files_cannot_name() -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    ours = MODERNBERT.read_config({"num_hidden_layers": 3, "layer_types": types}, "config.json")
    written = MODERNBERT.write_config(ours)
    assert written["layer_types"] == types and "global_attn_every_n_layers" not in written


def test_no_value_breaks_reading() -> None:
    check_hostile(LM)
    check_hostile(replace(LM, head="classification"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_activation": "mish"}, 'hidden_activation is "mish"'),
        ({"classifier_activation": "relu"}, "classifier_activation must be hidden_activation"),
        ({"classifier_pooling": "max"}, 'classifier_pooling is "max"'),
        ({"classifier_bias": "no"}, "classifier_bias"),
        ({"decoder_bias": [True]}, "decoder_bias"),
        ({"norm_bias": {}}, "norm_bias"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"local_attention": -2}, "local_attention is -2"),
        ({"local_attention": "128"}, "local_attention"),
        ({"local_attention": 10**40}, "sliding_window"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": 7}}, "rope_parameters.full_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "longrope"),
        ({"global_rope_theta": "big"}, "rope_theta"),
        ({"hidden_size": 12 * 7}, "must be even"),
        ({"architectures": ["ModernBertForMultipleChoice"]}, "ModernBertForMultipleChoice"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        MODERNBERT.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert words in message and message.startswith("DIR/config.json")
    assert "\n" not in message and len(message) < 500
