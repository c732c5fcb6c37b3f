"""The README of a model directory: for each kind and head the right verb, method and class of `transformers`."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import transformers

from trivium.checkpoints.bundle import Bundle
from trivium.checkpoints.model_card import model_card
from trivium.families import FAMILIES
from trivium.models.config import Head, ModelConfig

BASE = {"vocab_size": 320, "width": 32, "layers": 2, "heads": 4}
# One family of each kind that has the head, and what its card must tell.
CASES = [
    ("llama", "lm", "trivium generate . --prompt", "generate", "AutoModelForCausalLM", "causal language model"),
    (
        "bert",
        "lm",
        'trivium fill-mask . "The teacher <mask> the student."',
        "fill_mask",
        "AutoModelForMaskedLM",
        "A masked",
    ),
    ("t5", "lm", "trivium seq2seq .", "seq2seq", "AutoModelForSeq2SeqLM", "A sequence-to-sequence model"),
    ("bert", "classification", "trivium classify .", "classify", "AutoModelForSequenceClassification", "good, bad"),
    ("llama", "classification", "trivium classify .", "classify", "AutoModelForSequenceClassification", "good, bad"),
    ("bert", "none", "trivium embed .", "embed", "AutoModel", "A text encoder"),
    ("bert", "token_classification", "", "model", "AutoModelForTokenClassification", "A token classifier"),
    ("bert", "span", "", "model", "AutoModelForQuestionAnswering", "finds an answer"),
    ("llama", "scalar", "", "model", "AutoModelForSequenceClassification", "one number"),
]


def config_of(family: str, head: Head) -> ModelConfig:
    labels = ("good", "bad") if "classification" in head else ()
    return FAMILIES[family].with_head(ModelConfig(**BASE, **FAMILIES[family].shape), head, labels)


@pytest.mark.parametrize(("family", "head", "shell", "method", "auto", "words"), CASES)
def test_it_tells_how_to_use_the_model(family: str, head: Head, shell: str, method: str, auto: str, words: str) -> None:
    config = config_of(family, head)
    card = model_card("name", config, family, "fp32", "", "<mask>")
    assert shell in card and words in card and f"bundle.{method}" in card
    assert ("In a shell" in card) == bool(shell)
    assert set(re.findall(r"AutoModel\w*", card)) == {auto}
    # The class is the one of transformers that opens this architecture.
    opened = getattr(transformers, auto)._model_mapping
    theirs = getattr(transformers, FAMILIES[family].architecture(config))
    assert theirs is opened[theirs.config_class] or theirs in opened[theirs.config_class]
    assert callable(getattr(Bundle, method)) if method != "model" else True


def test_every_head_of_every_kind_has_a_card() -> None:
    for kind in ("decoder", "encoder", "encoder-decoder"):
        for head in get_args(Head):
            labels = ("a",) if "classification" in head else ()
            card = model_card("n", ModelConfig(**BASE, kind=kind, head=head, labels=labels), "x", "bf16", "Some notes.")
            assert "{" not in card and "Some notes." in card and "\n\n\n" not in card


def test_labels_and_layers_are_told() -> None:
    card = model_card("n", config_of("t5", "lm"), "t5", "fp32", "")
    assert "| layers x width | 2 + 2 x 32 |" in card
    names = tuple(f"class|{number}" for number in range(30))
    config = FAMILIES["bert"].with_head(config_of("bert", "lm"), "classification", names)
    card = model_card("n", config, "bert", "fp32", "")
    assert "class\\|19, ... |" in card and "class\\|20" not in card
