"""Every text is what it is alone, whatever arrives when, in whatever company, cut into whatever pieces."""

from __future__ import annotations

import random

import pytest
import torch
from tests.generation.one_pass import check_row, row_of
from tests.models.samples import VARIANTS, small_model

from trivium.errors import UserError
from trivium.generation import prefixes
from trivium.generation.batching import Engine
from trivium.generation.generate import generate, stepper_for
from trivium.generation.rows import Row, Rules
from trivium.generation.settings import GenerationSettings
from trivium.generation.slots import bytes_per_position
from trivium.generation.stepper import PlainStepper, Stepper
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.rope_scaling import RopeScaling
from trivium.tokenizer.bpe import Tokenizer

Prompts = list[list[int]]
GREEDY = GenerationSettings(max_new_tokens=24, ignore_eos=True)
ALL_SORTS = (
    GREEDY,
    GenerationSettings(max_new_tokens=40, speculate=5, ignore_eos=True),
    GenerationSettings(max_new_tokens=20, temperature=1.1, top_p=0.95),
    GenerationSettings(max_new_tokens=20, temperature=0.8, top_k=20, speculate=3, repetition_penalty=1.1),
    GenerationSettings(max_new_tokens=20, no_repeat_ngram_size=2, min_new_tokens=5),
)


def requests(model: Decoder, tokenizer: Tokenizer, prompts: Prompts, seed: int) -> list[tuple[Row, Rules]]:
    """Texts of all sorts, some of which begin alike."""
    rng = random.Random(seed)
    known = [token for token in range(model.config.vocab_size) if rng.random() < 0.03]
    made: list[tuple[Row, Rules]] = []
    for number, prompt in enumerate(prompts):
        if number and rng.random() < 0.4:
            other = rng.choice(made[-3:])[0].prompt
            prompt = [*other[: rng.randint(1, len(other))], *prompt][:90]
        settings = rng.choice(ALL_SORTS)
        made.append(row_of(model, tokenizer, prompt, settings, seed=number, eos_ids=known))
    return made


def run_at_random(engine: Engine, texts: list[tuple[Row, Rules]], seed: int, cancels: float = 0.0) -> list[Row]:
    """Submit the texts at random moments, let the engine go on, cancel a few; returns those cancelled."""
    rng, waiting, cancelled = random.Random(seed), list(texts), []
    while waiting or engine.busy:
        for _ in range(rng.choice((0, 0, 1, 2, 5))):
            if waiting:
                engine.submit(*waiting.pop(0))
        ended = [row for row, _ in engine.step() if row.finish_reason is not None]
        assert len(set(map(id, ended))) == len(ended)
        if rng.random() < cancels:
            row = rng.choice(texts)[0]
            if row.finish_reason is None and row not in waiting:
                engine.cancel(row)
                cancelled.append(row)
    assert sorted(engine.slots.free) == list(range(engine.slots.count))
    return cancelled


def engine_of(model: Decoder, stepper: Stepper, seed: int) -> Engine:
    """Few slots, in which prompts are read in pieces of another size for each seed."""
    sizes = (3, 17, 64, 1000)
    return Engine(model, slots=4, kept=seed % 3, capacity=16, stepper=stepper, tokens_per_step=sizes[seed % len(sizes)])


STEPPERS = pytest.mark.parametrize("make", [PlainStepper, stepper_for], ids=["plain", "fastest"])


@STEPPERS
@pytest.mark.parametrize("seed", range(4))
def test_texts_do_not_depend_on_company(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, seed: int, make: type[PlainStepper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(prefixes, "SHORTEST_SHARED", 2)
    texts = requests(model, tokenizer, prompts[:24], seed)
    engine = engine_of(model, make(model), seed)
    cancelled = run_at_random(engine, texts, seed, cancels=0.03)
    assert len(cancelled) < 10
    for row, rules in texts:
        if row not in cancelled:
            check_row(model, row, rules)
    assert engine.prefixes.saved > 50


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_decoder(variant: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp64, since the scores of these models are near each other."""
    monkeypatch.setattr(prefixes, "SHORTEST_SHARED", 2)
    model = small_model(VARIANTS[variant].changed(vocab_size=tokenizer.vocab_size), torch.float64)
    rng = random.Random(3)
    prompts = [[rng.randrange(12) for _ in range(rng.randint(1, 40))] for _ in range(12)]
    texts = requests(model, tokenizer, prompts, 0)
    run_at_random(engine_of(model, PlainStepper(model), 1), texts, 0)
    for row, rules in texts:
        check_row(model, row, rules)


def test_the_check_sees_a_neighbour_in_the_way(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: what is shared is believed to be one token longer than it is."""
    monkeypatch.setattr(prefixes, "SHORTEST_SHARED", 2)
    common = prefixes.common_beginning
    monkeypatch.setattr(
        prefixes, "common_beginning", lambda a, b: min(common(a, b) + (common(a, b) > 3), len(a), len(b))
    )
    texts = requests(model, tokenizer, prompts[:24], 0)
    run_at_random(engine_of(model, PlainStepper(model), 1), texts, 0)
    with pytest.raises(AssertionError, match=r"token \d+ of"):
        for row, rules in texts:
            check_row(model, row, rules)


def longest_wait(engine: Engine, texts: list[tuple[Row, Rules]], prompt: tuple[Row, Rules]) -> int:
    """While `prompt` is read, the most positions a step reads; every running text gets a token in each."""
    for text in texts:
        engine.submit(*text)
    engine.step()
    engine.submit(*prompt)
    most = 0
    while not prompt[0].tokens:
        before = sum(engine.slots.lengths)
        written = [row for row, _ in engine.step()]
        assert all(row in written for row, _ in texts if row.finish_reason is None)
        most = max(most, sum(engine.slots.lengths) - before)
    return most


def test_a_long_prompt_holds_up_nobody(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    texts = [row_of(model, tokenizer, ids[n : n + 5], GREEDY) for n in range(3)]
    long = row_of(model, tokenizer, ids[:200], GREEDY)
    engine = Engine(model, slots=4, tokens_per_step=20)
    assert longest_wait(engine, texts, long) == 20
    while engine.busy:
        engine.step()
    for row, rules in (*texts, long):
        check_row(model, row, rules)


def test_what_others_are_reading_is_waited_for(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    """Eight prompts of a common beginning, submitted at once: it is read once."""
    ids = tokenizer.encode(text)
    texts = [row_of(model, tokenizer, [*ids[:100], *ids[n : n + 9]], GREEDY) for n in range(200, 280, 10)]
    engine = Engine(model, slots=8, tokens_per_step=64)
    for one in texts:
        engine.submit(*one)
    engine.step()
    read = 0
    while engine.busy:
        engine.step()
    read = sum(len(row.prompt) for row, _ in texts) - engine.prefixes.saved
    assert read == 100 + 8 * 9
    for row, rules in texts:
        check_row(model, row, rules)


def test_a_text_that_cannot_go_on_leaves_alone(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Because of its own rules, or because of scores that are no numbers: its neighbours stay as they are."""
    forbidden = GenerationSettings(suppressed_ids=tuple(range(model.config.vocab_size)))
    never_7 = GenerationSettings(max_new_tokens=24, ignore_eos=True, suppressed_ids=(7,))
    with torch.no_grad():
        model.embedding.weight[7] = torch.nan
    good = [row_of(model, tokenizer, [t for t in p if t != 7] or [1], never_7) for p in prompts[:6]]
    bad = [row_of(model, tokenizer, prompts[7], forbidden), row_of(model, tokenizer, [5, 7, 9], never_7)]
    engine, rules = Engine(model, slots=3), good[0][1]
    for row, own in (*good[:3], *bad, *good[3:]):
        engine.submit(row, own if row is bad[0][0] else rules)  # one set of rules: chosen for together
    while engine.busy:
        engine.step()
    assert "every token of the vocabulary is forbidden" in str(bad[0][0].error)
    assert "not finite" in str(bad[1][0].error)
    for row, rules in good:
        assert row.error is None
        check_row(model, row, rules)
    assert all(buffer.isfinite().all() for buffer in (*engine.slots.keys, *engine.slots.values))


def test_the_budget_of_bytes_is_kept(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    each = bytes_per_position(model.config, torch.float32)
    with pytest.raises(UserError, match="2 texts of 100 tokens need"):
        Engine(model, slots=2, capacity=100, max_bytes=each * 100)
    engine = Engine(model, slots=2, capacity=20, max_bytes=each * 100)
    row, rules = row_of(model, tokenizer, [1] * 27, GREEDY)
    engine.submit(row, rules)
    long, rules = row_of(model, tokenizer, [1] * 28, GREEDY)
    with pytest.raises(UserError, match=r"prompt 0 and its text may have 51 tokens, and there is room for .* of 50"):
        engine.submit(long, rules)
    while engine.busy:
        engine.step()
    check_row(model, row, rules)
    assert engine.slots.bytes <= each * 100


def test_cancelled_texts_leave_at_once(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    texts = [row_of(model, tokenizer, prompt, GREEDY) for prompt in prompts[:3]]
    engine = Engine(model, slots=2)
    for text in texts:
        engine.submit(*text)
    engine.step()
    for row, _ in texts:
        engine.cancel(row)
        engine.cancel(row)
    assert not engine.busy and not texts[2][0].tokens and len(engine.slots.free) == 2


def test_angles_that_grow_with_the_text(tokenizer: Tokenizer) -> None:
    """`dynamic` scaling: prompts are read whole, nothing is shared or guessed, and texts do not see each other."""
    scaling = RopeScaling(method="dynamic", factor=2.0, original_max_positions=12)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, init_std=0.3, rope_scaling=scaling
    )
    model = small_model(config, torch.float64)
    rng = random.Random(0)
    shared = [rng.randrange(400) for _ in range(30)]
    settings = GenerationSettings(max_new_tokens=20, ignore_eos=True, speculate=4)
    prompts = [shared[:n] for n in (30, 20, 25, 5)]
    together = generate(model, tokenizer, prompts, settings)
    alone = [generate(model, tokenizer, [prompt], settings)[0] for prompt in prompts]
    assert [g.tokens for g in together] == [g.tokens for g in alone]
