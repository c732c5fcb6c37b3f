"""Answers as spans: the best of a search over all, exact substrings, windows that overlap."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from trivium.checkpoints.resolve import resolve_model
from trivium.errors import UserError
from trivium.generation.answering import CANDIDATES, Windows, answer, answers, best_answers
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer

TEXT = "Every  morning Mira walks from Löwenberg to the old mill, and in Zürich — 東京 🙂 she doesn't stop."
QUESTION = "Where does Mira walk from?"


@pytest.fixture(scope="module", params=["minilm-l6", "encoder", "encoder-decoder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "minilm-l6":
        return Tokenizer.load(Path(resolve_model("minilm-l6")))
    return Tokenizer.train(texts=[TEXT, QUESTION] * 5, vocab_size=420, kind=request.param)


def model_of(tokenizer: Tokenizer, **changes: object) -> tuple:
    shape = {"width": 16, "layers": 1, "heads": 2, "max_positions": 128, "head": "span", "segment_types": 2}
    config = ModelConfig(kind="encoder", vocab_size=tokenizer.vocab_size, **{**shape, **changes})
    model = build_model(config)
    initialise(model, config, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval(), config


def searched(context, placed, windows, scores, longest, none) -> dict[tuple[int, int], float]:
    """The score of every span, by going through all pairs of positions."""
    found: dict[tuple[int, int], float] = {}
    for window, table in zip(windows, scores, strict=True):
        for first, last in itertools.product(range(window.count), repeat=2):
            start, stop = placed.ranges[window.first + first], placed.ranges[window.first + last]
            if first <= last < first + longest and start[0] < start[1] and stop[0] < stop[1]:
                score = float(table[window.begin + first, 0] + table[window.begin + last, 1])
                span = start[0], stop[1]
                found[span] = max(score, found.get(span, -math.inf))
    if none:
        found[0, 0] = min(float(table[0].sum()) for table in scores)
    return found


@pytest.mark.parametrize(("length", "longest", "none"), [(128, 4, False), (40, 30, False), (40, 3, True)])
def test_the_best_answers_are_those_of_a_search_over_all(
    tokenizer: Tokenizer, length: int, longest: int, none: bool
) -> None:
    _, config = model_of(tokenizer)
    context = f"{TEXT} {TEXT.lower()}"
    placed, windows = Windows(tokenizer, config, length, stride=7).cut(QUESTION, context)
    assert (len(windows) > 1) == (length == 40)
    generator = torch.Generator().manual_seed(0)
    scores = [3 * torch.randn(len(window.wrapped.ids), 2, generator=generator) for window in windows]
    found = best_answers(context, placed, windows, scores, longest, none)
    every = searched(context, placed, windows, scores, longest, none)
    expected = sorted(every.values(), reverse=True)[:CANDIDATES]
    assert [each.score for each in found] == pytest.approx(expected)
    assert all(each.score == pytest.approx(every[each.start, each.stop]) for each in found)
    assert all(each.text == context[each.start : each.stop] for each in found)
    assert math.fsum(each.probability for each in found) == pytest.approx(1)
    if not none:
        assert all(each.text and each.text == each.text.strip() for each in found)


def test_every_token_is_in_a_window_with_others_around_it(tokenizer: Tokenizer) -> None:
    _, config = model_of(tokenizer)
    placed, windows = Windows(tokenizer, config, 40, stride=5).cut(QUESTION, TEXT * 3)
    held = [set(range(window.first, window.first + window.count)) for window in windows]
    assert set().union(*held) == set(range(len(placed.ids)))
    for window in windows:
        begin = window.begin
        assert window.wrapped.ids[begin : begin + window.count] == placed.ids[window.first :][: window.count]
        assert len(window.wrapped.ids) <= 40
    assert all(before & after for before, after in itertools.pairwise(held))
    long_question = Windows(tokenizer, config, 20)
    long_question.cut(QUESTION * 20, TEXT)
    assert long_question.num_cut_questions == 1
    with pytest.raises(UserError, match="no room for a question and a text"):
        Windows(tokenizer, config, len(tokenizer.wrap([], [])[0]))


def test_answers_do_not_depend_on_the_batch(tokenizer: Tokenizer) -> None:
    model, _ = model_of(tokenizer)
    pairs = [(QUESTION, TEXT * 3), ("Who?", "Mira."), (QUESTION, ""), ("Who walks?", TEXT)]
    together = answers(model, tokenizer, pairs, length=48, stride=9)
    alone = [answers(model, tokenizer, [pair], length=48, stride=9)[0] for pair in pairs]
    apart = answers(model, tokenizer, pairs, length=48, stride=9, tokens_per_batch=1)
    for some, one, other in zip(together, alone, apart, strict=True):
        assert [each.score for each in some] == pytest.approx([each.score for each in one], abs=1e-4)
        assert [each.text for each in some][:1] == [each.text for each in one][:1] == [each.text for each in other][:1]
    assert together[2] == []  # nothing can be found in nothing
    assert answer(model, tokenizer, "Who?", "", may_be_none=True)[0].text == ""
    assert len(answer(model, tokenizer, QUESTION, TEXT, top=3)) == 3


def test_models_and_scores_that_cannot_answer_are_refused() -> None:
    tokenizer = Tokenizer.train(texts=[TEXT] * 5, vocab_size=420, kind="encoder")
    other, config = model_of(tokenizer, head="classification", labels=("a", "b"))
    with pytest.raises(UserError, match="answering from a text needs"):
        answer(other, tokenizer, QUESTION, TEXT)
    placed, windows = Windows(tokenizer, config).cut(QUESTION, TEXT)
    with pytest.raises(UserError, match="not finite"):
        best_answers(TEXT, placed, windows, [torch.full((99, 2), torch.inf)], 30, False)
