"""What is written is read back; slots do not know each other; budgets are kept."""

from __future__ import annotations

import random

import pytest
import torch
from tests.models.samples import VARIANTS, small_model
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.slots import Slots, Storage, bytes_per_position, dequantized, quantized

CONFIG = VARIANTS["llama"]
L, K, N = CONFIG.layers, CONFIG.kv_heads, CONFIG.head_width
NOTHING = torch.empty(L, 2, K, 0, N)


def write(slots: Slots, slot: int, new: Tensor) -> None:
    """Append `new` (L, 2, K, T, N) in one of the two ways that places can be named."""
    start, count = slots.lengths[slot], new.shape[3]
    slots.reserve(start + count)
    for layer, (k_KTN, v_KTN) in enumerate(new):
        if count % 2:
            where = (slice(slot, slot + 1), slice(None), slice(start, start + count))
            slots.write(layer, where, k_KTN[None], v_KTN[None])
        else:
            places = torch.arange(start, start + count)
            slots.write(
                layer,
                (torch.full_like(places, slot), slice(None), places),
                k_KTN.transpose(0, 1),
                v_KTN.transpose(0, 1),
            )
    slots.advance(slot, count)


def check_random_use(kv: Storage, seed: int) -> None:
    """Write, copy and cut at random; after each step every slot holds what a list of tensors says."""
    rng, slots, expected = random.Random(seed), Slots(CONFIG, 5, 4, kv=kv), [NOTHING] * 5
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        slot = rng.randrange(5)
        length = rng.randint(0, slots.lengths[slot])
        match rng.choice(("write", "write", "cut", "copy")):
            case "write":
                new = torch.randn(L, 2, K, rng.randint(1, 30), N, generator=generator)
                write(slots, slot, new)
                expected[slot] = torch.cat((expected[slot], new), 3)
            case "cut":
                slots.truncate(slot, length)
                expected[slot] = expected[slot][..., :length, :]
            case _:
                target = rng.randrange(5)
                slots.copy_prefix(slot, target, length)
                expected[target] = expected[slot][..., :length, :]
        which = rng.sample(range(5), rng.randint(1, 5))
        which = sorted(which) if rng.random() < 0.5 else which
        most = max(slots.lengths[some] for some in which)
        for layer in range(L):
            for part, found in enumerate(slots.read(layer, which, most)):
                assert found.isfinite().all()  # also beyond a slot's length, where others are longer
                for row, some in enumerate(which):
                    wanted = expected[some][layer, part]
                    bound = wanted.abs().amax(-1, keepdim=True) / 254 * 1.0001 if kv == "int8" else torch.zeros(1)
                    assert slots.lengths[some] == wanted.shape[1]
                    assert ((found[row, :, : wanted.shape[1]] - wanted).abs() <= bound).all()


@pytest.mark.parametrize("kv", ["model", "int8"])
def test_slots_hold_what_was_written(kv: Storage) -> None:
    for seed in range(10):
        check_random_use(kv, seed)


def test_the_check_sees_lost_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken controls: a copy that stops one position short, and a cut that is not made."""
    copy = Slots.copy_prefix
    monkeypatch.setattr(Slots, "copy_prefix", lambda slots, a, b, n: copy(slots, a, b, max(0, n - 1)))
    with pytest.raises(AssertionError):
        check_random_use("model", 0)
    monkeypatch.setattr(Slots, "copy_prefix", copy)
    monkeypatch.setattr(Slots, "truncate", lambda slots, slot, length: None)
    with pytest.raises(AssertionError):
        check_random_use("model", 0)


def test_codes_are_within_half_a_scale_of_every_element() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 64, generator=generator) * 10.0 ** torch.randint(-6, 7, (2000, 1), generator=generator)
    x[0], x[1], x[2, 1:] = 0.0, 3.0, 0.0
    codes, scale = quantized(x)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) == 127
    error = (dequantized(codes, scale, torch.float32).double() - x.double()).abs()
    assert (error <= scale[:, None].double() * 0.50001).all()
    assert (error > scale[:, None].double() * 0.45).any()  # and not by much less: it is a bound that is reached
    assert (error[0] == 0).all() and (error[1] < 1e-6).all()


def test_claims_go_to_the_longest_free() -> None:
    slots = Slots(CONFIG, 3, 8)
    assert [slots.claim(), slots.claim(2), slots.claim()] == [0, 2, 1] and not slots.free
    slots.release(1)
    slots.release(0)
    assert list(slots.free) == [1, 0] and slots.claim() == 1


@pytest.mark.parametrize("kv", ["model", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_those_of_the_buffers(kv: Storage, dtype: torch.dtype) -> None:
    slots = Slots(CONFIG, 3, 100, dtype=dtype, kv=kv)
    held = [*slots.keys, *slots.values, *slots.key_scales, *slots.value_scales]
    assert slots.capacity == 128
    assert slots.bytes == sum(buffer.nbytes for buffer in held) == 3 * 128 * bytes_per_position(CONFIG, dtype, kv)
    assert slots.read(0, [0, 2], 5)[0].dtype == dtype


def test_the_budget_is_kept() -> None:
    each = bytes_per_position(CONFIG, torch.float32)
    slots = Slots(CONFIG, 2, 64, max_bytes=2 * 150 * each)
    slots.reserve(80)
    assert slots.capacity == 128
    slots.reserve(129)
    assert slots.capacity == 150 == slots.most_positions() and slots.bytes == 2 * 150 * each
    with pytest.raises(UserError, match=r"2 texts of 151 tokens need .* bytes of keys and values"):
        slots.reserve(151)
    with pytest.raises(UserError, match="are allowed: continue fewer texts"):
        Slots(CONFIG, 3, 101, max_bytes=2 * 150 * each)


def test_a_wiped_slot_holds_nothing_that_could_spread() -> None:
    slots = Slots.for_model(small_model(CONFIG), 2, 8)
    write(slots, 1, torch.full((L, 2, K, 3, N), torch.nan))
    write(slots, 0, torch.ones(L, 2, K, 3, N))
    slots.wipe(1)
    assert slots.lengths == [3, 0]
    assert all(found.isfinite().all() and (found[0] == 1).all() for found in slots.read(0, [0, 1], 3))
