"""A text is the same whatever it goes on from, and what it goes on from need not be read again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.generation.one_pass import check_row, row_of
from tests.models.samples import VARIANTS, small_model

from trivium.generation import prefixes
from trivium.generation.batching import Engine
from trivium.generation.generate import stepper_for
from trivium.generation.prefixes import Prefixes, common_beginning
from trivium.generation.rows import Row
from trivium.generation.settings import GenerationSettings
from trivium.generation.slots import Slots
from trivium.generation.stepper import PlainStepper, Stepper
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

GREEDY = GenerationSettings(max_new_tokens=12, ignore_eos=True)


def test_common_beginning() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        one, other = ([rng.randrange(2) for _ in range(rng.randint(0, 12))] for _ in range(2))
        expected = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        assert common_beginning(one, other) == (min(len(one), len(other)) if expected is None else expected)


def answered(engine: Engine, model: Decoder, tokenizer: Tokenizer, prompt: list[int]) -> tuple[Row, int]:
    """The text after a prompt, and how many tokens of the prompt were not read."""
    row, rules = row_of(model, tokenizer, prompt, GREEDY)
    before = engine.prefixes.saved
    engine.submit(row, rules)
    while engine.busy:
        engine.step()
    check_row(model, row, rules)
    return row, engine.prefixes.saved - before


def test_a_conversation_goes_on_in_its_slot(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    """Each turn is the whole conversation so far and a new question: only what is new is read."""
    engine, ids = Engine(model, slots=1, kept=1), tokenizer.encode(text)
    first, saved = answered(engine, model, tokenizer, ids[:40])
    assert saved == 0
    turn = [*first.prompt, *first.tokens]
    for start in (100, 120, 140):
        held = len(turn) - 1  # the last token was chosen and not read
        row, saved = answered(engine, model, tokenizer, [*turn, *ids[start : start + 20]])
        assert saved == held
        turn = [*row.prompt, *row.tokens]
    assert sum(length > 0 for length in engine.slots.lengths) == 1  # nothing was copied


def test_a_system_prompt_is_read_once(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    """From a text that has ended and from one that runs; the source stays what it was."""
    engine, ids = Engine(model, slots=2, kept=1), tokenizer.encode(text)
    system = ids[:50]
    _, saved = answered(engine, model, tokenizer, [*system, *ids[100:110]])
    assert saved == 0
    running, rules = row_of(model, tokenizer, [*system, *ids[200:230]], GREEDY)
    engine.submit(running, rules)
    engine.step()
    assert engine.prefixes.saved == 50
    for start in (300, 320, 340):
        _, saved = answered(engine, model, tokenizer, [*system, *ids[start : start + 10]])
        assert saved >= 50
    check_row(model, running, rules)


def test_the_longest_unused_is_given_up_first(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    engine, ids = Engine(model, slots=1, kept=1), tokenizer.encode(text)
    one, two, three = ids[:30], ids[300:330], ids[600:630]
    for prompt in (one, two):
        assert answered(engine, model, tokenizer, prompt)[1] == 0
    assert answered(engine, model, tokenizer, one)[1] == 29  # all but the last, which must be read; `two` is older now
    assert answered(engine, model, tokenizer, three)[1] == 0
    assert answered(engine, model, tokenizer, one)[1] == 29
    assert answered(engine, model, tokenizer, two)[1] == 0  # read again: it was evicted


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_decoder(variant: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "SHORTEST_SHARED", 1)
    model = small_model(VARIANTS[variant].changed(vocab_size=tokenizer.vocab_size), torch.float64)
    engine, rng = Engine(model, slots=1, kept=2), random.Random(0)
    stem = [rng.randrange(400) for _ in range(30)]
    saved = sum(answered(engine, model, tokenizer, [*stem[:n], n])[1] for n in (30, 12, 30, 5, 25, 30))
    assert saved > 100


def check_all_shapes(
    model: Decoder, tokenizer: Tokenizer, text: str, *, texts: int = 36, stepper: Stepper | None = None
) -> tuple[int, float]:
    """Chunked, shared, evicted and read again, guessed: each greedy token is that of one fresh pass without a cache.

    Returns how many there were, and the largest difference of a log-probability.
    """
    ids, rng = tokenizer.encode(text), random.Random(0)
    settings = GenerationSettings(max_new_tokens=60, ignore_eos=True, speculate=4)
    stems = [ids[n : n + 80] for n in (0, 500, 1000)]
    asked = []
    for number in range(texts):
        stem, start = rng.choice(stems), rng.randrange(len(ids) - 40)
        prompt = [*stem[: rng.randint(1, 80)], *ids[start : start + rng.randint(1, 40)]]
        asked.append(row_of(model, tokenizer, prompt, settings, seed=number))
    engine = Engine(model, slots=5, kept=2, capacity=32, tokens_per_step=40, stepper=stepper)
    for row, rules in asked:
        engine.submit(row, rules)
    while engine.busy:
        engine.step()
    assert engine.prefixes.saved > 300 and engine.guessed > 0
    off = max(check_row(model, row, rules) for row, rules in asked)
    return sum(len(row.tokens) for row, _ in asked), off


@pytest.mark.parametrize("make", [PlainStepper, stepper_for], ids=["plain", "fastest"])
def test_2000_tokens_of_all_shapes_equal_no_cache(
    model: Decoder, tokenizer: Tokenizer, text: str, make: Callable[[Decoder], Stepper]
) -> None:
    count, off = check_all_shapes(model, tokenizer, text, stepper=make(model))
    assert count > 2000 and off <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_20000_tokens_of_all_shapes_equal_no_cache(variant: str, tokenizer: Tokenizer, text: str) -> None:
    """In fp64: among so many tokens of random models some are nearer to each other than fp32 can tell."""
    model = small_model(VARIANTS[variant].changed(vocab_size=tokenizer.vocab_size), torch.float64)
    count, off = check_all_shapes(model, tokenizer, text, texts=340)
    assert count > 20_000 and off <= 1e-5


def test_the_check_sees_a_beginning_from_the_wrong_text(
    model: Decoder, tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: what is taken over is that of another slot."""
    copy = Slots.copy_prefix

    def wrong(slots: Slots, source: int, target: int, length: int) -> None:
        others = [n for n in range(slots.count) if n not in (source, target) and slots.lengths[n] >= length]
        copy(slots, others[0] if others else source, target, length)

    monkeypatch.setattr(Slots, "copy_prefix", wrong)
    with pytest.raises(AssertionError, match=r"token \d+ of"):
        check_all_shapes(model, tokenizer, text)


def test_sharing_can_be_off() -> None:
    slots = Slots(VARIANTS["llama"], 2, 8)
    shared = Prefixes(slots, shares=False)
    ids = list(range(40))
    slot = shared.claim(ids)
    slots.lengths[slot] = 8
    assert not shared.about_to_be_read(ids)
    shared.release(slot, ids)
    assert shared.claim(ids) != slot and shared.claim(ids) == slot and slots.lengths == [0, 0]
