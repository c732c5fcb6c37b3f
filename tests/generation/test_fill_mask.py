"""Blanks filled as by the fill-mask pipeline of `transformers`, on random models with real vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, RobertaConfig, RobertaForMaskedLM, pipeline

from generation.conftest import TEXT, translated
from trivium.errors import UserError
from trivium.generation import fill_mask as module
from trivium.generation.fill_mask import fill_mask, fill_masks
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "initializer_range": 0.3, "max_position_embeddings": 66,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random BERT, and a WordPiece vocabulary learned from real text."""
    folder = tmp_path_factory.mktemp("bert")
    learned = BertWordPieceTokenizer()
    learned.train_from_iterator([TEXT], vocab_size=600, show_progress=False)
    learned.save_model(str(folder))
    theirs = BertTokenizerFast.from_pretrained(folder)
    theirs.save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(theirs), **SIZES)).eval()
    model.save_pretrained(folder)
    return model, (theirs, Tokenizer.load(folder))


def check_equals_pipeline(theirs: Any, their_tokenizer: Any, model: Any, tokenizer: Tokenizer, text: str) -> None:
    """The ten likeliest tokens of each blank, and their probabilities to 1e-5."""
    expected = pipeline("fill-mask", model=theirs, tokenizer=their_tokenizer, top_k=10)(text)
    expected = expected if isinstance(expected[0], list) else [expected]
    found = fill_masks(model, tokenizer, text, top_k=10)
    assert len(found) == len(expected)
    for candidates, others in zip(found, expected, strict=True):
        assert [candidate.id for candidate in candidates] == [other["token"] for other in others]
        for candidate, other in zip(candidates, others, strict=True):
            assert candidate.probability == pytest.approx(other["score"], abs=1e-5)
            assert candidate.token == other["token_str"].strip()
            if len(expected) == 1:
                assert candidate.text == other["sequence"]


@pytest.mark.parametrize(
    "text", ["the [MASK] of this module", "[MASK]", "[MASK] and [MASK] return [MASK].", "ends with [MASK]"]
)
def test_bert_equals_the_pipeline(bert: tuple[Any, Any], text: str) -> None:
    theirs, (their_tokenizer, tokenizer) = bert
    check_equals_pipeline(theirs, their_tokenizer, translated(theirs), tokenizer, text)


def test_the_check_sees_a_wrong_place(bert: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: the scores of the position before the blank, as in a causal model."""
    theirs, (their_tokenizer, tokenizer) = bert
    hidden = module.hidden_states
    monkeypatch.setattr(module, "hidden_states", lambda *given: hidden(*given).roll(1, 1))
    with pytest.raises(AssertionError):
        check_equals_pipeline(theirs, their_tokenizer, translated(theirs), tokenizer, "the [MASK] of this")


def test_the_literal_mask_stands_for_any_mask_token(tmp_path: Path) -> None:
    """RoBERTa's own is `<mask>`, which brings no space of its own; both ways of writing it are the same."""
    tokenizer = Tokenizer.train(texts=[TEXT], vocab_size=400, kind="encoder-decoder")  # its mask is <mask>
    torch.manual_seed(1)
    theirs = RobertaForMaskedLM(RobertaConfig(vocab_size=400, pad_token_id=0, **SIZES)).eval()
    model = translated(theirs)
    found = fill_mask(model, tokenizer, "def [MASK](text):", top_k=3)
    assert found == fill_mask(model, tokenizer, "def <mask>(text):", top_k=3)
    ids, _ = tokenizer.wrap(tokenizer.encode("def <mask>(text):", parse_special=True))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_id)].softmax(-1).topk(3)
    assert [candidate.id for candidate in found] == expected.indices.tolist()
    assert [candidate.probability for candidate in found] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_refusals(bert: tuple[Any, Any], tokenizer: Tokenizer) -> None:
    theirs, (_, own) = bert
    model = translated(theirs)
    with pytest.raises(UserError, match=r"the text has no \[MASK\] to fill in"):
        fill_mask(model, own, "nothing is missing")
    with pytest.raises(UserError, match="no mask token"):
        fill_mask(model, tokenizer, "a [MASK]")
    with pytest.raises(UserError, match="ask for at least one candidate"):
        fill_mask(model, own, "a [MASK]", top_k=0)
    with pytest.raises(UserError, match=r"the text has \d+ tokens .* learned 66 positions: shorten it"):
        fill_mask(model, own, "a [MASK]" + " word" * 100)
    assert len(fill_mask(model, own, "a [MASK]", top_k=10**6)) == own.vocab_size
    for kind, verb in (("decoder", "generate"), ("encoder-decoder", "seq2seq")):
        other = build_model(ModelConfig(kind=kind, vocab_size=own.vocab_size, width=16, layers=1, heads=2))
        with pytest.raises(UserError, match=f"filling a mask needs an encoder .*{kind} .*: use {verb}"):
            fill_mask(other, own, "a [MASK]")
    with torch.no_grad():
        model.embedding.weight[5] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        fill_mask(model, own, "a [MASK]")
