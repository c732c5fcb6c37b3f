"""Tags of words: the places of words among tokens, and results that do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError
from trivium.generation.tagging import WordRows, first_tokens, tag, tags, tags_of
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer

WORDS = ["Dr.", "Ängström", "doesn't", "", "live", "in", "東京", "\u200b", ",", "Llanfairpwll", "🙂"]
TEXTS = ["Mira feeds the goats of Löwenberg and doesn't complain 🙂", "東京 is far from here , Dr. Ängström said"]


@pytest.fixture(scope="module", params=["minilm-l6", "encoder", "decoder", "encoder-decoder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "minilm-l6":
        return Tokenizer.load(Path(resolve_model("minilm-l6")))
    return Tokenizer.train(texts=TEXTS * 5, vocab_size=420, kind=request.param)


def model_of(tokenizer: Tokenizer, **changes: object) -> tuple:
    labels = ("O", "B-PER", "I-PER")
    shape = {"width": 16, "layers": 1, "heads": 2, "max_positions": 64, "head": "token_classification"}
    config = ModelConfig(kind="encoder", vocab_size=tokenizer.vocab_size, labels=labels, **{**shape, **changes})
    model = build_model(config)
    initialise(model, config, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval(), config


def test_a_word_is_told_where_it_begins_and_ids_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    _, config = model_of(tokenizer)
    words = [word for word in WORDS if word not in ("", "\u200b")]
    (row,) = WordRows(tokenizer, config, 256).place_all([words])
    assert row.wrapped.ids == tokenizer.wrap(tokenizer.encode(" ".join(words)))[0][: len(row.wrapped.ids)]
    assert row.num_cut == sum(place is None for place in row.places)
    places = [place for place in row.places if place is not None]
    assert places == sorted(set(places)) and len(places) >= 3
    # what stands before a word's place is the text before it
    begin = tokenizer.wrap([-1])[0].index(-1)
    for number, place in enumerate(row.places):
        if place is not None and number:
            before = tokenizer.decode(row.wrapped.ids[begin:place])
            expected = tokenizer.decode(tokenizer.encode(" ".join(words[:number])))
            assert [c for c in before if c.isalnum()] == [c for c in expected if c.isalnum()]


def test_words_without_a_token_are_told_none(tokenizer: Tokenizer) -> None:
    _, config = model_of(tokenizer)
    (row,) = WordRows(tokenizer, config, 256).place_all([["Mira", "", "feeds"]])
    assert row.places[1] is None and row.places[0] is not None and row.places[2] is not None
    assert row.num_cut == 0


def test_first_tokens_by_hand() -> None:
    words = ["ab", "cd", "", "e"]  # "ab cd  e"
    assert first_tokens(words, [(0, 0), (0, 1), (1, 2), (3, 5), (7, 8)]) == [1, 3, None, 4]
    assert first_tokens(words, [(0, 2), (7, 8)]) == [0, None, None, 1]  # nothing is left of the second
    assert first_tokens(words, [(0, 5), (7, 8)]) == [0, None, None, 1]  # a token of both tells the first
    assert first_tokens(words, []) == [None] * 4


def test_words_beyond_the_length_are_cut(tokenizer: Tokenizer) -> None:
    model, config = model_of(tokenizer)
    words = TEXTS[0].split() * 20
    (row,) = WordRows(tokenizer, config).place_all([words])
    assert len(row.wrapped.ids) == 64
    assert row.num_cut > 20 and all(place is None for place in row.places[-20:])
    found = tag(model, tokenizer, words)
    assert len(found) == len(words) and set(found[-20:]) == {"O"}
    with pytest.raises(UserError, match="no room for a word"):
        WordRows(tokenizer, config, len(tokenizer.wrap([])[0]))


def test_tags_do_not_depend_on_the_batch(tokenizer: Tokenizer) -> None:
    model, _ = model_of(tokenizer)
    sentences = [text.split() for text in TEXTS] + [["Mira"], WORDS]
    together = tags(model, tokenizer, sentences)
    assert together == [tag(model, tokenizer, words) for words in sentences]
    assert together == tags(model, tokenizer, sentences, tokens_per_batch=1)
    assert len({each for some in together for each in some}) > 1  # not all the same


def test_what_cannot_be_tagged_is_refused() -> None:
    tokenizer = Tokenizer.train(texts=TEXTS * 5, vocab_size=420, kind="encoder")
    other, _ = model_of(tokenizer, head="classification")
    with pytest.raises(UserError, match="tagging needs a model with a token_classification head"):
        tag(other, tokenizer, ["a"])
    model, _ = model_of(tokenizer)
    with pytest.raises(TypeError, match="given as its words"):
        tags(model, tokenizer, ["Mira feeds"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="not finite"):
        tags_of([0], torch.full((2, 3), torch.nan), ["O", "B", "I"])
