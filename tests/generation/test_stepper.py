"""However a text is cut into reads and in whatever company, its logits are those of one fresh pass."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from tests.models.samples import BASE, VARIANTS, small_model
from torch import Tensor

from trivium.generation.slots import Slots
from trivium.generation.stepper import PlainStepper, SlotRows
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.rope_scaling import RopeScaling

Texts = list[list[int]]


def texts_of(config: ModelConfig, lengths: Sequence[int], seed: int = 0) -> Texts:
    rng = random.Random(seed)
    return [[rng.randrange(config.vocab_size) for _ in range(length)] for length in lengths]


def fresh(model: Decoder, ids: list[int]) -> Tensor:
    """The logits after each id, without slots: (T, V)."""
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0]


def read_in_pieces(model: Decoder, texts: Texts, slots: Slots, seed: int) -> list[Tensor]:
    """The logits after every id of each text, read in random pieces in changing company."""
    rng, stepper = random.Random(seed), PlainStepper(model)
    homes = rng.sample(range(slots.count), len(texts))
    found: list[list[Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        waiting = [i for i, text in enumerate(texts) if done[i] < len(text)]
        some = rng.sample(waiting, rng.randint(1, len(waiting)))
        if rng.random() < 0.5:
            some.sort(key=lambda i: homes[i])
        pieces = [texts[i][done[i] :][: rng.choice((1, 1, 2, 5, 40))] for i in some]
        every = rng.random() < 0.7
        logits = stepper.read(slots, [homes[i] for i in some], pieces, every=every)
        for i, piece, row in zip(some, pieces, logits, strict=True):
            found[i].append(row[: len(piece)] if every else row.new_full((len(piece), row.shape[-1]), torch.nan))
            if not every:
                found[i][-1][-1] = row
            done[i] += len(piece)
            assert slots.lengths[homes[i]] == done[i]
    return [torch.cat(rows) for rows in found]


def largest_difference(model: Decoder, seeds: range, **slots: object) -> float:
    """Over all logits that were given, relative to the largest."""
    worst = 0.0
    for seed in seeds:
        texts = texts_of(model.config, [random.Random(seed).randint(1, 60) for _ in range(4)], seed)
        held = Slots.for_model(model, 7, 8, **slots)  # type: ignore[arg-type]
        for text, found in zip(texts, read_in_pieces(model, texts, held, seed), strict=True):
            expected, given = fresh(model, text), ~found.isnan()
            assert given.any()
            worst = max(worst, ((found - expected)[given].abs().max() / expected.abs().max()).item())
    return worst


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_cut_in_any_company_equals_one_pass(variant: str) -> None:
    assert largest_difference(small_model(VARIANTS[variant], torch.float64), range(3)) < 1e-12
    assert largest_difference(small_model(VARIANTS[variant]), range(3)) < 1e-5


@pytest.mark.parametrize("variant", ["llama", "windows, sandwich, caps, qk-norm", "alibi, embedding norm"])
def test_the_check_sees_wrong_places(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: every row is masked as if it were as long as the longest."""
    made = SlotRows.__init__

    def broken(rows: SlotRows, *given: object) -> None:
        made(rows, *given)  # type: ignore[arg-type]
        rows.places = None

    monkeypatch.setattr(SlotRows, "__init__", broken)
    assert largest_difference(small_model(VARIANTS[variant]), range(3)) > 1e-3


def test_bf16_is_as_near_as_one_pass_is() -> None:
    """Rounding of bf16, whichever path attention takes: far from the difference that a wrong place makes."""
    assert largest_difference(small_model(VARIANTS["llama"], torch.bfloat16), range(3)) < 0.05


def test_int8_keys_and_values_stay_near() -> None:
    """0.4 % of the largest element of a head is the most an element is off; logits of random models are off by less
    than 10 % of the largest."""
    for variant in ("llama", "windows, sandwich, caps, qk-norm", "relative, scale 1"):
        worst = largest_difference(small_model(VARIANTS[variant]), range(3), kv="int8")
        assert 1e-5 < worst < 0.1


def test_learned_positions_end_where_the_table_does() -> None:
    """A padded row may not ask for positions beyond the table."""
    config = VARIANTS["layernorm, learned, plain gelu, biases"].changed(max_positions=40)
    model = small_model(config)
    texts = texts_of(config, [40, 9])
    slots, stepper = Slots.for_model(model, 2, 40), PlainStepper(model)
    stepper.read(slots, [0, 1], [texts[0][:39], texts[1][:1]])
    found = stepper.read(slots, [0, 1], [texts[0][39:], texts[1][1:]])
    for text, row in zip(texts, found, strict=True):
        torch.testing.assert_close(row, fresh(model, text)[-1], rtol=1e-5, atol=1e-4)


def test_angles_that_grow_with_the_text_do_not_grow_with_its_neighbours() -> None:
    """`dynamic` scaling: as the text alone, read at once and then token by token."""
    scaling = RopeScaling(method="dynamic", factor=2.0, original_max_positions=12)
    model = small_model(BASE.changed(rope_scaling=scaling), torch.float64)
    texts = texts_of(model.config, [30, 9, 14])

    def read(some: Texts, then: int) -> list[Tensor]:
        slots, stepper = Slots.for_model(model, 3, 64), PlainStepper(model)
        which = list(range(len(some)))
        rows = [stepper.read(slots, which, some)]
        rows += [stepper.read(slots, which, [[t]] * len(some)) for t in range(then)]
        return rows

    together = torch.stack(read(texts, 8), 1)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(row, torch.cat(read([text], 8)), rtol=0, atol=1e-12)
    slots, stepper = Slots.for_model(model, 3, 64), PlainStepper(model)
    stepper.read(slots, [1], [texts[0]])
    ahead = stepper.read(slots, [1], [list(range(8))], every=True)
    torch.testing.assert_close(ahead[0], together[0, 1:], rtol=0, atol=1e-12)


def test_a_slot_grows_while_its_neighbours_keep_what_they_hold() -> None:
    model = small_model(VARIANTS["llama"])
    (long, short) = texts_of(model.config, [300, 20])
    slots, stepper = Slots.for_model(model, 2, 16), PlainStepper(model)
    version = slots.version
    stepper.read(slots, [1], [short[:-1]])
    stepper.read(slots, [0], [long])
    assert slots.capacity >= 300 and slots.version > version
    found = stepper.read(slots, [1], [short[-1:]])[0]
    torch.testing.assert_close(found, fresh(model, short)[-1], rtol=1e-5, atol=1e-4)
