"""DistilBERT against `transformers`: all heads, and tables of positions filled with sines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DistilBertConfig

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
from trivium.families.distilbert import DISTILBERT

SIZES: tuple[dict[str, Any], ...] = (
    {"vocab_size": 61, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 96},
    {
        "vocab_size": 97,
        "dim": 36,
        "n_layers": 3,
        "n_heads": 3,
        "hidden_dim": 51,
        "max_position_embeddings": 25,
        "activation": "relu",
        "dropout": 0.0,
        "attention_dropout": 0.2,
    },
    {
        "vocab_size": 40,
        "dim": 14,
        "n_layers": 1,
        "n_heads": 1,
        "hidden_dim": 9,
        "max_position_embeddings": 90,
        "tie_word_embeddings": False,
    },
)
SAMPLES = samples(DISTILBERT, DistilBertConfig, SIZES)
LM = Sample(DISTILBERT, DistilBertConfig, "lm", SIZES[0])


@pytest.mark.parametrize("sample", some_of_each(SAMPLES), ids=str)
def test_equals_transformers(sample: Sample, tmp_path: Path) -> None:
    check_family(sample.reference(), tmp_path)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_config_and_names(sample: Sample) -> None:
    check_config(sample)
    check_names(sample)


def test_every_head_can_be_put_on() -> None:
    for sample in SAMPLES[: len(DISTILBERT.heads)]:
        check_heads(sample)
    check_fresh(DISTILBERT)


def test_untied_token_scores(tmp_path: Path) -> None:
    check_family(Sample(DISTILBERT, DistilBertConfig, "lm", SIZES[2]).reference(), tmp_path)


def test_positions_filled_with_sines_are_those_of_the_file(tmp_path: Path) -> None:
    sample = Sample(DISTILBERT, DistilBertConfig, "lm", {**SIZES[0], "sinusoidal_pos_embds": True})
    reference = sample.reference()
    assert reference.distilbert.embeddings.position_embeddings.weight[0, 1].item() == 1.0
    check_result(reference, opened(reference, tmp_path)[0])


@torch.no_grad()
def test_a_padded_batch(tmp_path: Path) -> None:
    reference = shaken(LM.reference())
    model, config = opened(reference, tmp_path)
    ids, real = padded(random_ids(config, 3, 21), (21, 9, 14))
    expected = reference(ids, attention_mask=real).logits
    assert relative(model(ids, segments=real.int())[real > 0], expected[real > 0]) <= 1e-5


# ---------------------------------------------------------------------------------------------------- broken controls


@pytest.mark.parametrize(
    ("first", "second"),
    [("attention.query", "attention.value"), ("attention_norm", "mlp_norm"), ("head.norm", "stack.embedding_norm")],
    ids=str,
)
def test_broken_control_exchanged_names_are_seen(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = shaken(LM.reference())
    assert not fails(lambda: check_result(reference, opened(reference, tmp_path / "right")[0]))
    monkeypatch.setitem(FAMILIES, "distilbert", replace(DISTILBERT, weights=exchanged(DISTILBERT, first, second)))
    assert fails(lambda: check_result(reference, opened(reference, tmp_path / "wrong")[0]))


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("classification", {"head_hidden": "tanh"}),
        ("classification", {"pooling": "mean"}),
        ("lm", {"norm_eps": 1e-3}),
        ("lm", {"activation": "relu"}),
    ],
    ids=str,
)
def test_broken_control_a_wrong_option_is_seen(head: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    reference = shaken(replace(LM, head=head).reference())
    model, _ = opened(reference, tmp_path)
    assert not fails(lambda: check_result(reference, with_changes(model)))
    assert fails(lambda: check_result(reference, with_changes(model, **changes)))


# -------------------------------------------------------------------------------------------------------- config.json


def test_keys_left_out_mean_what_they_mean_to_transformers() -> None:
    ours = DISTILBERT.read_config({"architectures": None, "dim": None}, "config.json")
    assert ours == DISTILBERT.read_config(DistilBertConfig().to_dict(), "config.json")
    assert (ours.width, ours.heads, ours.layers, ours.mlp_width, ours.norm_eps) == (768, 12, 6, 3072, 1e-12)


def test_what_it_cannot_say_is_named() -> None:
    config = DISTILBERT.read_config({}, "config.json")
    assert DISTILBERT.obstacles(config.changed(segment_types=2)) == ["segment_types must be 0 (is 2)"]
    assert DISTILBERT.obstacles(config.changed(norm_eps=1e-5)) == ["norm_eps must be 1e-12 (is 1e-05)"]


def test_no_value_breaks_reading() -> None:
    check_hostile(LM)
    check_hostile(replace(LM, head="classification"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_decoder": True}, "is_decoder is true"),
        ({"activation": "tanh"}, 'activation is "tanh"'),
        ({"activation": 3}, "activation is 3"),
        ({"dim": 10}, "heads=12 does not divide width=10"),
        ({"dim": "wide"}, "width"),
        ({"n_layers": -4}, "layers"),
        ({"dropout": 1.5}, "dropout"),
        ({"max_position_embeddings": 0}, "max_positions"),
        ({"max_position_embeddings": 10**40}, "max_positions"),
        ({"architectures": ["DistilBertForMultipleChoice"]}, "DistilBertForMultipleChoice"),
        ({"architectures": ["DistilBertForTokenClassification"], "id2label": {}}, "id2label"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        DISTILBERT.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert words in message and message.startswith("DIR/config.json")
    assert "\n" not in message and len(message) < 500
