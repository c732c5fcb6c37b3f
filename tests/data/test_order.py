from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from trivium.data.order import Indices, Mixture, block_counts, key_of, keys_at, permutation, permute

Shuffle = Callable[[int, int], Indices]


def feistel(size: int, key: int) -> Indices:
    return permute(np.arange(size), size, np.full(size, key, np.uint64))


def assert_bijection(shuffle: Shuffle, size: int, key: int) -> None:
    assert np.array_equal(np.sort(shuffle(size, key)), np.arange(size)), size


def assert_looks_random(shuffle: Shuffle) -> None:
    """No trace of the old order in the new one, by figures that a fair shuffle exceeds once in ten thousand times."""
    size = 20_011
    seen = []
    for key in (key_of(seed, "test") for seed in range(5)):
        moved = shuffle(size, key)
        seen.append(moved)
        for lag in (1, 2, 64):
            assert abs(np.corrcoef(moved[:-lag], moved[lag:])[0, 1]) < 4 / math.sqrt(size)
        assert abs(np.corrcoef(np.arange(size), moved)[0, 1]) < 4 / math.sqrt(size)
        assert np.sum(moved == np.arange(size)) < 10
        assert np.sum(np.abs(np.diff(moved)) == 1) < 14
        # Where the first tenth goes, in 50 bins: chi-squared with 49 degrees of freedom.
        bins = np.histogram(moved[: size // 10], bins=50, range=(0, size))[0]
        expected = size / 10 / 50
        assert np.sum((bins - expected) ** 2 / expected) < 95
    for first, second in zip(seen[:-1], seen[1:], strict=True):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(size)


def test_every_size_is_a_bijection() -> None:
    for size in range(1, 301):
        assert_bijection(feistel, size, key_of(size, "a"))
    draw = random.Random(0)
    for size in [2**16, 2**16 + 1, *(draw.randrange(10**4, 3 * 10**5) for _ in range(5))]:
        assert_bijection(feistel, size, key_of(size, "b"))


def test_huge_sizes_stay_inside_and_apart() -> None:
    for size in (10**9 + 7, 2**40 + 1, 2**62):
        indices = np.arange(size - 5000, size)
        moved = permute(indices, size, np.full(5000, 3, np.uint64))
        assert moved.min() >= 0 and moved.max() < size and len(set(moved.tolist())) == 5000


def test_a_network_that_is_no_feistel_network_is_caught() -> None:
    """Broken control: hashing each index is no bijection."""

    def hashed(size: int, key: int) -> Indices:
        return (keys_at(key, np.arange(size)) % np.uint64(size)).astype(np.int64)

    with pytest.raises(AssertionError):
        assert_bijection(hashed, 300, 1)


def test_it_looks_random() -> None:
    assert_looks_random(feistel)


@pytest.mark.parametrize(
    "weak",
    [
        lambda size, key: (np.arange(size) + key % size) % size,
        lambda size, key: np.arange(size) * 7919 % size,
        lambda size, key: np.argsort(np.arange(size) % 64, kind="stable"),
        lambda size, key: np.random.default_rng(0).permutation(size),
    ],
    ids=["rotation", "multiplication", "stride", "one order for all keys"],
)
def test_weak_shuffles_are_caught(weak: Shuffle) -> None:
    """Broken controls."""
    with pytest.raises(AssertionError):
        assert_looks_random(weak)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 16, 100])
def test_small_sizes_are_fair_over_keys(size: int) -> None:
    """The first index goes everywhere equally often: chi-squared, once in ten thousand times worse."""
    draws = 20_000
    moved = permute(np.zeros(draws, np.int64), size, keys_at(key_of(0, "fair"), np.arange(draws)))
    expected = draws / size
    degrees = size - 1
    limit = degrees + 4 * math.sqrt(2 * degrees) + 8
    assert np.sum((np.bincount(moved, minlength=size) - expected) ** 2 / expected) < limit


def test_one_index_is_the_same_as_many() -> None:
    whole = feistel(1000, 42)
    assert [permutation(index, 1000, 42) for index in range(0, 1000, 111)] == whole[::111].tolist()


def test_the_order_never_changes() -> None:
    """A run begun by an earlier version must go on in the same order."""
    assert key_of(1, "row", 0) == 0xFE7DCD6E1F4CFCB8
    assert feistel(10, 1).tolist() == [0] * 10
    places = Mixture([5, 7], [2.0, 1.0], seed=0).places(np.arange(12))
    assert list(zip(places.source.tolist(), places.epoch.tolist(), places.row.tolist(), strict=True)) == []


def test_keys_differ_by_type_and_part() -> None:
    assert len({key_of(1), key_of("1"), key_of(1, 1), key_of(11), key_of("1", 1), key_of(1, "1")}) == 6


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], (1,)),
        ([2.0, 1.0], (2, 1)),
        ([0.7, 0.3], (7, 3)),
        ([0.5, 0.3, 0.2], (5, 3, 2)),
        ([1e-9, 1.0], (1, 1000)),
        ([333.0, 667.0], (333, 667)),
    ],
)
def test_weights_become_small_whole_numbers(weights: list[float], counts: tuple[int, ...]) -> None:
    assert block_counts(weights) == counts


def test_many_odd_weights_are_rounded_to_millionths() -> None:
    weights = [1 / prime for prime in (3, 7, 11, 13, 17, 19, 23, 29, 31, 37)] + [1e-12]
    counts = block_counts(weights)
    assert sum(counts) < 1_000_100 and min(counts) == 1
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count / sum(counts) - weight / sum(weights)) < 2e-6


def test_every_block_holds_each_source_exactly_as_often_as_it_should() -> None:
    mixture = Mixture([50, 13, 1000], [0.5, 0.3, 0.2], seed=3)
    places = mixture.places(np.arange(10 * 400))
    for block in places.source.reshape(-1, mixture.block_rows):
        assert np.bincount(block, minlength=3).tolist() == [5, 3, 2]
    assert len({tuple(block) for block in places.source.reshape(-1, mixture.block_rows).tolist()}) > 300


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_each_source_gives_each_row_once_per_epoch(weights: list[float] | None) -> None:
    sizes = [50, 13, 7]
    places = Mixture(sizes, weights, seed=3).places(np.arange(70 * 30))
    for source, size in enumerate(sizes):
        mine = places.source == source
        counts = Counter(zip(places.epoch[mine].tolist(), places.row[mine].tolist(), strict=True))
        assert set(counts.values()) == {1}
        whole_epochs = len(counts) // size - 2  # blocks at the end may be partly past an epoch's end
        assert whole_epochs > 3
        assert all((epoch, row) in counts for epoch in range(whole_epochs) for row in range(size))
        epochs = places.epoch[mine]
        assert np.all(np.diff(np.maximum.accumulate(epochs) - epochs) <= 1)


def test_without_weights_all_sources_end_their_epochs_together() -> None:
    sizes = [50, 13, 7]
    places = Mixture(sizes, None, seed=1).places(np.arange(70 * 3))
    assert places.epoch.tolist() == [0] * 70 + [1] * 70 + [2] * 70
    rows = {(s, r) for s, r in zip(places.source[:70].tolist(), places.row[:70].tolist(), strict=True)}
    assert len(rows) == 70


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one = Mixture([1000], None, seed=1).places(np.arange(2000)).row.reshape(2, -1)
    other = Mixture([1000], None, seed=2).places(np.arange(1000)).row
    assert abs(np.corrcoef(one[0], one[1])[0, 1]) < 0.13
    assert abs(np.corrcoef(one[0], other)[0, 1]) < 0.13


def test_any_part_of_the_order_is_the_same_as_in_the_whole() -> None:
    mixture = Mixture([50, 13, 1000], [0.5, 0.3, 0.2], seed=3)
    whole = mixture.places(np.arange(3000))
    for start, stop in ((0, 1), (17, 18), (1000, 1700), (2999, 3000), (5, 5)):
        part = mixture.places(np.arange(start, stop))
        for name in ("source", "epoch", "row"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[start:stop])
