"""Ids with their places: the ids of `encode`, and characters that are those of the text."""

from __future__ import annotations

import argparse
import inspect
import itertools
from pathlib import Path

import pytest

from trivium.checkpoints.bundle import load
from trivium.checkpoints.resolve import resolve_model
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.offsets import PlaceEncoder

TEXT = "  Café naïve: “Dr. O'Neil” met 3,000 people  in Zürich — 東京 🙂👍🏽 [SEP] </s> ﬁne.\n\tEnd "


@pytest.fixture(scope="module", params=["bert", "smollm2", "own encoder", "own decoder", "own encoder-decoder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bert":
        return Tokenizer.load(Path(resolve_model("minilm-l6")))
    if request.param == "smollm2":
        return load("smollm2-135m-instruct").tokenizer
    return Tokenizer.train(texts=[inspect.getsource(argparse)], vocab_size=400, kind=request.param[4:])


def test_ids_are_those_of_encode_and_places_cover_the_text(tokenizer: Tokenizer) -> None:
    ids, ranges = PlaceEncoder(tokenizer).encode(TEXT)
    assert ids == tokenizer.encode(TEXT)
    assert len(ids) == len(ranges)
    covered = {place for start, stop in ranges for place in range(start, stop)}
    assert {place for place, character in enumerate(TEXT) if not character.isspace()} <= covered
    assert all(TEXT[start:stop] == TEXT[start:stop].strip() for start, stop in ranges)
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(ranges) if after[0] < after[1])


def test_each_place_holds_what_its_id_says(tokenizer: Tokenizer) -> None:
    text = "Three old goats stand near the well."
    ids, ranges = PlaceEncoder(tokenizer).encode(text)
    said = [tokenizer.decode([token_id]).strip().removeprefix("##").lower() for token_id in ids]
    assert said == [text[start:stop].lower() for start, stop in ranges]
    assert said != [text[max(0, start - 1) : stop].lower() for start, stop in ranges]  # one off would be seen


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    encoder = PlaceEncoder(tokenizer)
    assert encoder.encode_batch([TEXT, "", "Pim"]) == [encoder.encode(each) for each in (TEXT, "", "Pim")]
