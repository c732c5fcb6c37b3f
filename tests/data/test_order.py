from __future__ import annotations

import itertools
import math
import random
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
    for first, second in itertools.pairwise(seen):
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
    assert key_of(1, "row", 0) == 0xA3DD53E5D6B4CA46
    assert feistel(10, 1).tolist() == [9, 2, 0, 6, 5, 1, 7, 3, 4, 8]
    places = Mixture([5, 7], [2.0, 1.0], seed=0).places(np.arange(9))
    assert places.source.tolist() == [1, 0, 0] * 3
    assert places.epoch.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert places.row.tolist() == [1, 4, 0, 4, 3, 1, 5, 2, 2]


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


WEIGHTED = [([50, 13, 1000], [0.5, 0.3, 0.2]), ([3, 200], [900.0, 100.0]), ([50, 13, 7], None), ([8], None)]


def assert_each_row_once_per_epoch(mixture: Mixture, count: int) -> None:
    """In the order of the run, every source goes through all its rows before it begins again."""
    places = mixture.places(np.arange(count))
    for source, size in enumerate(mixture.sizes):
        mine = places.source == source
        epochs, rows = places.epoch[mine], places.row[mine]
        assert np.array_equal(epochs, np.arange(len(epochs)) // size)
        for epoch in rows[: len(rows) // size * size].reshape(-1, size):
            assert sorted(epoch.tolist()) == list(range(size))


@pytest.mark.parametrize(("sizes", "weights"), WEIGHTED)
def test_each_source_gives_each_row_once_per_epoch(sizes: list[int], weights: list[float] | None) -> None:
    assert_each_row_once_per_epoch(Mixture(sizes, weights, seed=3), 6000)


def test_drawing_rows_at_random_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: sampling with replacement, as many loaders do for weighted mixtures."""
    monkeypatch.setattr(
        "trivium.data.order.permute",
        lambda indices, size, keys: (keys_at(1, indices) % np.uint64(size)).astype(np.int64),
    )
    with pytest.raises(AssertionError):
        assert_each_row_once_per_epoch(Mixture([50, 13], [0.5, 0.5], seed=3), 600)


@pytest.mark.parametrize(("sizes", "weights"), WEIGHTED)
def test_every_block_holds_each_source_exactly_as_often_as_it_should(
    sizes: list[int], weights: list[float] | None
) -> None:
    mixture = Mixture(sizes, weights, seed=3)
    block_rows = sum(mixture.counts)
    sources = mixture.places(np.arange(20 * block_rows)).source
    for start in (0, 1, block_rows // 2):  # wherever the block begins, but for rounding of the later sources
        for block in sources[start:][: 19 * block_rows].reshape(19, block_rows):
            counts = np.bincount(block, minlength=len(sizes))
            assert counts[0] == mixture.counts[0]
            assert np.abs(counts - mixture.counts).max() <= (0 if start == 0 else 1)


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
