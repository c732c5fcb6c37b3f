"""Guessing ahead changes the speed of a text and nothing else."""

from __future__ import annotations

import random

import pytest
from tests.generation.one_pass import check_row, row_of
from tests.models.samples import BASE, small_model

from trivium.checkpoints.bundle import Bundle, load
from trivium.errors import UserError
from trivium.generation.batching import Engine, _Running
from trivium.generation.generate import Generation, generate
from trivium.generation.lookup import Lookup
from trivium.generation.settings import GenerationSettings
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

Prompts = list[list[int]]
# Every filter, greedily and drawn.
FILTERS: dict[str, dict[str, object]] = {
    "greedy": {"ignore_eos": True},
    "penalised": {"repetition_penalty": 1.05, "min_new_tokens": 4},
    "no n-gram twice": {"no_repeat_ngram_size": 3, "suppressed_ids": (5, 6)},
    "sampled": {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "seed": 3},
    "sampled, all filters": {
        "temperature": 0.4,
        "top_p": 0.9,
        "repetition_penalty": 1.02,
        "no_repeat_ngram_size": 8,
        "min_new_tokens": 10,
        "suppressed_ids": (9,),
        "stop": ("zz", "e e"),
    },
}


@pytest.fixture
def repetitive(tokenizer: Tokenizer) -> Decoder:
    """A small random model whose texts soon go round in circles."""
    return small_model(BASE.changed(vocab_size=tokenizer.vocab_size, positions="none", layers=1, init_std=0.4))


def both_ways(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, settings: dict[str, object]
) -> tuple[list[Generation], list[Generation]]:
    """The texts without and with guessing."""
    common = {"max_new_tokens": 30, **settings}
    without, guessing = (
        generate(model, tokenizer, prompts, GenerationSettings(**common, speculate=count))  # type: ignore[arg-type]
        for count in (0, 6)
    )
    return without, guessing


def check_same(without: list[Generation], guessing: list[Generation], tolerance: float = 3e-5) -> None:
    """Scores here are near 20, whose own rounding is 2e-6."""
    for one, other in zip(without, guessing, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) <= tolerance


@pytest.mark.parametrize("filters", FILTERS)
def test_40_prompts_each_with_and_without(
    repetitive: Decoder, tokenizer: Tokenizer, prompts: Prompts, filters: str
) -> None:
    without, guessing = both_ways(repetitive, tokenizer, prompts[:40], FILTERS[filters])
    check_same(without, guessing)
    assert sum(len(g.tokens) for g in without) > 200


def test_right_guesses_save_steps(repetitive: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    settings = GenerationSettings(max_new_tokens=60, ignore_eos=True, speculate=6)
    texts = [row_of(repetitive, tokenizer, prompt, settings) for prompt in prompts[:8]]
    engine, steps = Engine(repetitive, slots=1), 0
    for text in texts:
        engine.submit(*text)
    while engine.busy:
        engine.step()
        steps += 1
    for row, rules in texts:
        check_row(repetitive, row, rules)
    assert steps == 8 * 60 - engine.accepted < 400
    assert engine.accepted <= engine.guessed


def test_the_check_sees_guesses_taken_on_trust(
    repetitive: Decoder, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: a guess is taken for right without a look at what was chosen."""
    right = Engine._was_right

    def trusting(engine: Engine, running: _Running, guess: list[int]) -> bool:
        if guess and running.row.finish_reason is None:
            running.row.tokens[-1] = guess[0]
        return right(engine, running, guess)

    monkeypatch.setattr(Engine, "_was_right", trusting)
    with pytest.raises(AssertionError):
        check_same(*both_ways(repetitive, tokenizer, prompts[:10], FILTERS["greedy"]))


def test_the_check_sees_wrong_guesses_that_stay_read(
    repetitive: Decoder, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: keys and values of wrong guesses are believed to be those of the text."""
    write_on = Engine._write_on

    def keeping(engine: Engine, some: list[_Running]) -> object:
        monkeypatch.setattr(engine.slots, "truncate", lambda slot, length: None)
        events = write_on(engine, some)
        monkeypatch.undo()
        monkeypatch.setattr(Engine, "_write_on", keeping)
        return events

    monkeypatch.setattr(Engine, "_write_on", keeping)
    with pytest.raises(AssertionError):
        check_same(*both_ways(repetitive, tokenizer, prompts[:10], FILTERS["greedy"]))


@pytest.fixture(scope="module")
def smollm2() -> Bundle:
    try:
        return load("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"needs real weights: {error}")


def test_a_real_model_that_copies(smollm2: Bundle) -> None:
    """Asked to go on with what repeats itself: most tokens are guessed, and every one is the same."""
    model, tokenizer = smollm2.model, smollm2.tokenizer
    assert isinstance(model, Decoder)
    source = "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return "
    prompts = [tokenizer.encode(source * 2), tokenizer.encode("one two three four one two three four one two")]
    for sampling in ({}, {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.01}):
        without, guessing = both_ways(model, tokenizer, prompts, {"max_new_tokens": 20, **sampling})
        check_same(without, guessing, 1e-4)
    engine = Engine(model, slots=2)
    for prompt in prompts:
        engine.submit(*row_of(model, tokenizer, prompt, GenerationSettings(max_new_tokens=20, speculate=6)))
    while engine.busy:
        engine.step()
    assert engine.accepted > 20


def guessed_slowly(ids: list[int], count: int) -> list[int]:
    """By the rule, looking through all of the text."""
    for size in (3, 2):
        tail = ids[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if len(tail) == size and ids[start : start + size] == tail:
                follows = list(ids)
                for place in range(start + size, start + size + count):
                    follows.append(follows[place])
                return follows[len(ids) :]
    return []


def test_guesses_are_those_of_the_rule() -> None:
    rng = random.Random(0)
    hints = 0
    for _ in range(300):
        ids = [rng.randrange(rng.choice((2, 4, 9))) for _ in range(rng.randint(0, 30))]
        lookup, cut = Lookup(ids[: len(ids) // 2]), len(ids) // 2
        for place in range(cut, len(ids) + 1):
            expected = guessed_slowly(ids[:place], 5)
            assert lookup.guess(5) == expected
            hints += bool(expected)
            lookup.extend(ids[place : place + 1])
    assert hints > 500
    assert Lookup([]).guess(3) == [] == Lookup([1, 1]).guess(3)
    assert Lookup([1, 1, 1]).guess(3) == [1, 1, 1] and Lookup([4, 5, 6, 4, 5]).guess(0) == []
