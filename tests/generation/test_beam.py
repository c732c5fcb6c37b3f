"""The bookkeeping of beam search on a toy language, against an exhaustive search."""

from __future__ import annotations

import itertools
import math
import random
from typing import Literal

import pytest

from trivium.generation.beam import BeamSearch, Candidate

END, WORDS, LIMIT = 0, range(4), 4  # token 0 ends a text
Toy = dict[tuple[int, ...], list[float]]


def toy(seed: int) -> Toy:
    """Log-probabilities of the next of four tokens after every beginning of up to three."""
    rng = random.Random(seed)
    language: Toy = {}
    for length in range(LIMIT):
        for beginning in itertools.product(WORDS, repeat=length):
            weights = [rng.expovariate(1) for _ in WORDS]
            language[beginning] = [math.log(weight / sum(weights)) for weight in weights]
    return language


def logprob(language: Toy, text: tuple[int, ...]) -> float:
    """Of a whole text."""
    return sum(language[text[:n]][token] for n, token in enumerate(text))


def search(language: Toy, search: BeamSearch) -> BeamSearch:
    """Run a search to its end."""
    while not search.over:
        candidates = [
            Candidate(number, token, value, beam.score + value)
            for number, beam in enumerate(search.running)
            for token, value in enumerate(language[tuple(beam.tokens)])
        ]
        candidates.sort(key=lambda candidate: -candidate.score)
        some = candidates[: 2 * search.num_beams]
        before = search.running
        parents = search.advance(some, [candidate.token == END for candidate in some])
        for parent, beam in zip(parents, search.running, strict=True):
            assert before[parent].tokens == beam.tokens[:-1]
    return search


def best_of_all(language: Toy, penalty: float) -> tuple[int, ...]:
    """By trying every text: those that end, and those of full length."""
    texts = [
        text
        for length in range(1, LIMIT + 1)
        for text in itertools.product(WORDS, repeat=length)
        if END not in text[:-1] and (text[-1] == END or length == LIMIT)
    ]
    return max(texts, key=lambda text: logprob(language, text) / len(text) ** penalty)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
def test_enough_beams_find_the_best_text(penalty: float) -> None:
    """ "never" stops only when nothing better can come."""
    for seed in range(40):
        language = toy(seed)
        found = search(language, BeamSearch(4**LIMIT, LIMIT, length_penalty=penalty, early_stopping="never"))
        assert tuple(found.best.tokens) == best_of_all(language, penalty)
        assert found.best.score == pytest.approx(logprob(language, tuple(found.best.tokens)))
        assert found.best.logprobs == [
            language[tuple(found.best.tokens[:n])][token] for n, token in enumerate(found.best.tokens)
        ]


def test_the_check_sees_a_greedy_search() -> None:
    """Broken control: one beam misses the best text of some languages, and two of fewer."""
    missed = []
    for beams in (1, 2, 64):
        found = (search(toy(seed), BeamSearch(beams, LIMIT)).best.tokens for seed in range(40))
        missed.append(sum(tuple(text) != best_of_all(toy(seed), 1.0) for seed, text in enumerate(found)))
    assert missed[0] > missed[1] > missed[2] == 0


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_when_a_search_ends(early_stopping: bool | Literal["never"]) -> None:
    """Two beams; finished texts score -1 and -2, and the best running one could still reach -1.5 by growing."""
    found = BeamSearch(2, 10, length_penalty=1.0, early_stopping=early_stopping)
    found.advance([Candidate(0, END, -1.0, -1.0), Candidate(0, END, -2.0, -2.0), Candidate(0, 1, -3.0, -3.0)],
                  [True, True, False])  # fmt: skip
    # Grown to the limit of ten, -3 would be -0.3; now it is -3.
    assert found.over == (early_stopping != "never")
    assert found.best.tokens == [END] and len(found.running) == 2


def test_only_the_best_continuations_finish() -> None:
    """An end that is not among the K best of its step is no text; the unfinished ones behind it are followed."""
    found = BeamSearch(2, 10)
    parents = found.advance(
        [Candidate(0, 1, -1.0, -1.0), Candidate(0, 2, -2.0, -2.0), Candidate(0, END, -3.0, -3.0)], [False, False, True]
    )
    assert parents == [0, 0] and not found.finished
    assert [beam.tokens for beam in found.running] == [[1], [2]]


def test_impossible_candidates_are_none() -> None:
    """With one possible continuation (a forced token) the other beams stand for nothing."""
    found = BeamSearch(3, 2)
    parents = found.advance([Candidate(0, 3, -0.5, 0.0), Candidate(0, 1, -9.0, -math.inf)], [False, False])
    assert parents == [0, 0, 0]
    assert [beam.score for beam in found.running] == [0.0, -math.inf, -math.inf]
    assert found.advance([Candidate(0, 2, -0.7, -0.7)], [False]) == []
    assert found.over and found.best.tokens == [3, 2] and found.best.logprobs == [-0.5, -0.7]
