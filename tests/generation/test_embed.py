"""Vectors against the mean computed with `transformers`, alone and in batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from generation.conftest import translated
from trivium.errors import UserError
from trivium.generation import encoding
from trivium.generation.embed import embed
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.encoder import Encoder
from trivium.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="module")
def texts(text: str) -> list[str]:
    """Of no, few and many words."""
    return ["", "x", text[:30], text[100:400], text[500:620], text[700:705], text[1000:1250]]


@pytest.fixture(scope="module")
def encoder_tokenizer(text: str) -> Tokenizer:
    return Tokenizer.train(texts=[text], vocab_size=400, kind="encoder")


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.2, max_position_embeddings=256,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def encoder(bert: BertModel) -> Encoder:
    return translated(bert)  # type: ignore[no-any-return]


def check_equals_transformers(bert: BertModel, model: Encoder, tokenizer: Tokenizer, texts: list[str]) -> None:
    """In batches of several sizes."""
    expected: list[Tensor] = []
    for one in texts:
        ids, _ = tokenizer.wrap(tokenizer.encode(one))
        with torch.no_grad():
            mean = bert(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected.append(mean / mean.norm())
    for tokens_per_batch in (1, 100, 8192):
        found = embed(model, tokenizer, texts, tokens_per_batch=tokens_per_batch)
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_vectors_equal_transformers(
    bert: BertModel, encoder: Encoder, encoder_tokenizer: Tokenizer, texts: list[str]
) -> None:
    check_equals_transformers(bert, encoder, encoder_tokenizer, texts)


@pytest.mark.parametrize("part", ["attention", "mean"])
def test_the_check_sees_padding(
    part: str, bert: BertModel, encoder: Encoder, encoder_tokenizer: Tokenizer, texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Broken controls: padding that is attended to; padding that counts in the mean."""
    from trivium.generation import embed as module

    hidden, padded = encoding.hidden_states, encoding.padded
    if part == "mean":
        monkeypatch.setattr(encoding, "padded", lambda *a, **k: (padded(*a, **k)[0], None))
    else:
        monkeypatch.setattr(
            module, "hidden_states", lambda m, i: hidden(m, encoding.Inputs(i.ids_BT, None, i.types_BT))
        )
    with pytest.raises(AssertionError):
        check_equals_transformers(bert, encoder, encoder_tokenizer, texts)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_other_kinds(kind: str, encoder_tokenizer: Tokenizer, texts: list[str]) -> None:
    config = ModelConfig(kind=kind, vocab_size=400, width=32, layers=2, heads=4, max_positions=512, init_std=0.2)
    model = build_model(config)
    initialise(model, config, seed=0)
    vectors = embed(model, encoder_tokenizer, texts)
    alone = torch.cat([embed(model, encoder_tokenizer, [one]) for one in texts])
    torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)))


def test_edges(encoder: Encoder, encoder_tokenizer: Tokenizer) -> None:
    assert embed(encoder, encoder_tokenizer, []).shape == (0, 32)
    with pytest.raises(TypeError, match="sequence of texts"):
        embed(encoder, encoder_tokenizer, "a text")
    with pytest.raises(UserError, match=r"text 1 has 402 tokens .* learned 256 positions: shorten it"):
        embed(encoder, encoder_tokenizer, ["x", "é" * 200])
