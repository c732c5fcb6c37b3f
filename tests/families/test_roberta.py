"""RoBERTa against `transformers`: all heads, and positions that begin behind the padding token's id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig

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
from families.parity import check_family, check_result, check_way_back, fails, opened, random_ids, relative, shaken
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.families.bert import BERT
from trivium.families.roberta import ROBERTA

SIZES: tuple[dict[str, Any], ...] = (
    {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 96,
        "type_vocab_size": 1,
    },
    {
        "vocab_size": 97,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 51,
        "max_position_embeddings": 34,
        "pad_token_id": 3,
        "layer_norm_eps": 1e-5,
    },
    {
        "vocab_size": 40,
        "hidden_size": 15,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 90,
        "pad_token_id": 0,
        "type_vocab_size": 3,
        "attention_probs_dropout_prob": 0.0,
    },
)
SAMPLES = samples(ROBERTA, RobertaConfig, SIZES)
LM = Sample(ROBERTA, RobertaConfig, "lm", SIZES[0])


@pytest.mark.parametrize("sample", some_of_each(SAMPLES), ids=str)
def test_equals_transformers(sample: Sample, tmp_path: Path) -> None:
    check_family(sample.reference(), tmp_path)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_config_and_names(sample: Sample) -> None:
    check_config(sample)
    check_names(sample)


def test_every_head_can_be_put_on() -> None:
    for sample in SAMPLES[: len(ROBERTA.heads)]:
        check_heads(sample)
    check_fresh(ROBERTA)


def test_another_activation_where_no_token_is_scored(tmp_path: Path) -> None:
    sample = Sample(ROBERTA, RobertaConfig, "classification", {**SIZES[0], "hidden_act": "relu"})
    check_config(sample)
    check_family(sample.reference(), tmp_path)


@torch.no_grad()
def test_a_padded_batch(tmp_path: Path) -> None:
    """There padding is told by its id, and left out when positions are counted; here by segments."""
    reference = shaken(LM.reference())
    model, config = opened(reference, tmp_path)
    ids, real = padded(random_ids(config, 3, 21), (21, 9, 14))
    for shift in (0, 5):  # padding on both sides
        ids, real = torch.roll(ids, shift, 1), torch.roll(real, shift, 1)
        ids = torch.where(real > 0, ids, 1)
        expected = reference(ids, attention_mask=real).logits
        found = model(ids, segments=real.int())
        assert relative(found[1:][real[1:] > 0], expected[1:][real[1:] > 0]) <= 1e-5


@torch.no_grad()
def test_untied_token_scores(tmp_path: Path) -> None:
    """There is a second bias then, which has no effect."""
    sample = Sample(ROBERTA, RobertaConfig, "lm", {**SIZES[0], "tie_word_embeddings": False})
    check_config(sample)
    check_names(sample)
    reference = shaken(sample.reference())
    model, config = opened(reference, tmp_path / "theirs")
    check_result(reference, model)
    check_way_back(reference, model, config, tmp_path)


# ---------------------------------------------------------------------------------------------------- broken controls


@pytest.mark.parametrize(
    ("first", "second"),
    [("attention.value", "attention.output"), ("attention_norm", "mlp_norm"), ("head.norm", "stack.embedding_norm")],
    ids=str,
)
def test_broken_control_exchanged_names_are_seen(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = shaken(LM.reference())
    assert not fails(lambda: check_result(reference, opened(reference, tmp_path / "right")[0]))
    monkeypatch.setitem(FAMILIES, "roberta", replace(ROBERTA, weights=exchanged(ROBERTA, first, second)))
    assert fails(lambda: check_result(reference, opened(reference, tmp_path / "wrong")[0]))


def test_broken_control_positions_counted_as_in_bert_are_seen(tmp_path: Path) -> None:
    """The same table of positions, read from its first row on."""
    reference = shaken(LM.reference())
    model, config = opened(reference, tmp_path)
    rows = config.max_positions + config.position_offset
    assert fails(lambda: check_result(reference, with_changes(model, position_offset=0, max_positions=rows)))
    assert fails(lambda: check_result(reference, with_changes(model, position_offset=3, max_positions=rows - 3)))
    assert not fails(lambda: check_result(reference, with_changes(model)))


# -------------------------------------------------------------------------------------------------------- config.json


def test_keys_left_out_mean_what_they_mean_to_transformers() -> None:
    ours = ROBERTA.read_config({"architectures": None, "pad_token_id": None}, "config.json")
    assert ours == ROBERTA.read_config(RobertaConfig().to_dict(), "config.json")
    assert (ours.vocab_size, ours.position_offset, ours.max_positions, ours.segment_types) == (50_265, 2, 510, 2)


def test_the_published_shape_is_read() -> None:
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    ours = ROBERTA.read_config(published, "config.json")
    assert (ours.max_positions, ours.position_offset) == (512, 2)
    written = ROBERTA.write_config(ours)
    assert {key: written[key] for key in published} == published


def test_a_bert_is_told_what_makes_it_a_roberta() -> None:
    bert = BERT.read_config({}, "config.json")
    assert ROBERTA.obstacles(bert) == ["position_offset must be 1 (is 0)"]


def test_no_value_breaks_reading() -> None:
    check_hostile(LM)
    check_hostile(replace(LM, head="classification"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_decoder": True}, "is_decoder is true"),
        ({"position_embedding_type": "relative_key_query"}, 'position_embedding_type is "relative_key_query"'),
        ({"hidden_act": "relu"}, 'hidden_act is "relu"'),
        ({"hidden_act": "quick_gelu"}, 'hidden_act is "quick_gelu"'),
        ({"pad_token_id": -1}, "pad_token_id -1"),
        ({"pad_token_id": "1"}, 'pad_token_id "1"'),
        ({"pad_token_id": True}, "pad_token_id true"),
        ({"pad_token_id": 511}, "max_position_embeddings is 512"),
        ({"max_position_embeddings": "long"}, 'max_position_embeddings is "long"'),
        ({"max_position_embeddings": 10**40}, "max_positions"),
        ({"pad_token_id": 60, "vocab_size": 50}, "pad_token_id=60 is beyond vocab_size=50"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"architectures": ["RobertaForCausalLM"]}, "RobertaForCausalLM"),
        ({"hidden_size": 11}, "heads=12 does not divide width=11"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        ROBERTA.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert words in message and message.startswith("DIR/config.json")
    assert "\n" not in message and len(message) < 500
