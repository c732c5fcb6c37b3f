"""Classes as `transformers` tells them, of the three kinds of models, alone and in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from generation.conftest import translated
from trivium.errors import UserError
from trivium.finetuning.head_rows import HeadExample, HeadRows, head_result
from trivium.generation import encoding
from trivium.generation.classify import classify
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.peft.apply import add_adapter
from trivium.peft.settings import PromptSettings
from trivium.tokenizer.bpe import Tokenizer

NAMES = {0: "good", 1: "bad", 2: "so-so"}
CASES = ["bert", "bart", "llama"]


@pytest.fixture(scope="module")
def tokenizers(text: str) -> dict[str, Tokenizer]:
    kinds = {"bert": "encoder", "bart": "encoder-decoder", "llama": "decoder"}
    return {name: Tokenizer.train(texts=[text], vocab_size=400, kind=kind) for name, kind in kinds.items()}


def reference(case: str, names: dict[int, str] = NAMES) -> tuple[Any, Any]:
    """A random classifier of `transformers`, and ours with its weights."""
    torch.manual_seed(3)
    common = {"vocab_size": 400, "id2label": names, "label2id": {v: k for k, v in names.items()}, "pad_token_id": 0}
    wide = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "initializer_range": 0.2,
    }  # fmt: skip
    if case == "bert":
        theirs: Any = BertForSequenceClassification(BertConfig(**common, **wide))
        return theirs.eval(), translated(theirs)
    if case == "llama":
        theirs = LlamaForSequenceClassification(LlamaConfig(**common, **wide, eos_token_id=None, bos_token_id=None))
        return theirs.eval(), translated(theirs)
    theirs = BartForSequenceClassification(
        BartConfig(
            **common, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.2, eos_token_id=1,
            bos_token_id=None, decoder_start_token_id=1,
        )
    )  # fmt: skip
    return theirs.eval(), translated(theirs)


def check_equals_transformers(case: str, tokenizers: dict[str, Tokenizer], texts: list[str], pairs: Any) -> None:
    """Probabilities to 1e-5, in batches of several sizes."""
    theirs, ours = reference(case)
    tokenizer, expected = tokenizers[case], []
    for number, one in enumerate(texts):
        ids, types = tokenizer.wrap(tokenizer.encode(one), pairs and tokenizer.encode(pairs[number]))
        more = {"token_type_ids": torch.tensor([types])} if case == "bert" else {}
        with torch.no_grad():
            expected.append(theirs(torch.tensor([ids]), **more).logits[0].softmax(-1).tolist())
    for tokens_per_batch in (1, 100, 8192):
        found = classify(ours, tokenizer, texts, pairs, tokens_per_batch=tokens_per_batch)
        for result, wanted in zip(found, expected, strict=True):
            assert list(result.probabilities) == list(NAMES.values())
            assert list(result.probabilities.values()) == pytest.approx(wanted, abs=1e-5)
            assert result.probabilities[result.label] == max(result.probabilities.values())


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_probabilities_equal_transformers(case: str, paired: bool, tokenizers: dict[str, Tokenizer], text: str) -> None:
    texts = ["x", text[:30], text[100:400], text[500:620]]
    check_equals_transformers(case, tokenizers, texts, [text[40:90], "y", text[:10], text[30:60]] if paired else None)


@pytest.mark.parametrize("case", CASES)
def test_the_check_sees_padding(
    case: str, tokenizers: dict[str, Tokenizer], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: padding is read like text."""
    padded = encoding.padded
    monkeypatch.setattr(encoding, "padded", lambda *a, **k: (padded(*a, **k)[0], None))
    with pytest.raises(AssertionError):
        check_equals_transformers(case, tokenizers, ["x", text[:30], text[100:400]], None)


def test_a_single_label_is_a_regression(tokenizers: dict[str, Tokenizer]) -> None:
    theirs, ours = reference("bert", {0: "stars"})
    ids, _ = tokenizers["bert"].wrap(tokenizers["bert"].encode("a text"))
    (found,) = classify(ours, tokenizers["bert"], ["a text"])
    with torch.no_grad():
        assert found.probabilities == {"score": pytest.approx(float(theirs(torch.tensor([ids])).logits), abs=1e-5)}
    assert found.label == "score"


def test_refusals(tokenizers: dict[str, Tokenizer]) -> None:
    _, ours = reference("bert")
    with pytest.raises(TypeError, match="sequence of texts"):
        classify(ours, tokenizers["bert"], "a text")
    with pytest.raises(ValueError, match="1 second texts for 2 first ones"):
        classify(ours, tokenizers["bert"], ["a", "b"], ["c"])
    with pytest.raises(UserError, match=r"text 0 has .* learned 512 positions"):
        classify(ours, tokenizers["bert"], ["é" * 600])
    plain = build_model(ModelConfig(kind="encoder", vocab_size=400, width=16, layers=1, heads=2))
    with pytest.raises(
        UserError, match=r"classification needs a model with .* a scalar head; this one has a token head \(lm\)$"
    ):
        classify(plain, tokenizers["bert"], ["a"])
    assert classify(ours, tokenizers["bert"], []) == []
    with torch.no_grad():
        ours.head.output.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        classify(ours, tokenizers["bert"], ["a"])


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_seen_as_in_training(case: str, tokenizers: dict[str, Tokenizer]) -> None:
    """With learned positions before the text, classes are told from what the loss was computed of."""
    _, ours = reference(case)
    add_adapter(ours, PromptSettings(start="random"), seed=1)
    tokenizer = tokenizers[case]
    texts = ["def first(x): return x", "y"]
    rows = [HeadExample(np.array(tokenizer.wrap(tokenizer.encode(text))[0], np.int32), None, 0) for text in texts]
    batch = HeadRows(rows, 64, ours.config, tokenizer.pad_id or 0).collate(rows)
    with torch.no_grad():
        expected = head_result(ours.eval(), batch).softmax(-1)
    found = torch.tensor([list(each.probabilities.values()) for each in classify(ours, tokenizer, texts)])
    assert torch.allclose(found, expected, atol=1e-6)
    if case == "bert":  # the broken control: the head of an encoder on the text's own positions alone
        wrong = ours.result(ours.hidden(batch.ids, segments=batch.segments), batch.segments).softmax(-1)
        assert not torch.allclose(wrong, expected, atol=1e-4)
