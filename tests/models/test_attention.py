"""The cache: any split of a sequence equals one pass, and a superseded cache is never used silently (R13)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.samples import VARIANTS, random_ids, relative, small_model
from trivium.models.cache import Cache
from trivium.models.decoder import Decoder
from trivium.models.masks import attention_mask

CHUNKINGS = [[40], [1] * 40, [7, 1, 1, 20, 3, 8], [39, 1], [1, 39]]


@torch.no_grad()
def in_chunks(model: Decoder, ids_BT: Tensor, chunks: Sequence[int], capacity: int, padding: Tensor | None) -> Tensor:
    """Logits computed chunk by chunk with a cache; `padding` (B,): how many positions of each row are padding."""
    dtype = model.embedding.weight.dtype
    cache: Cache | None = Cache.empty(model.config, ids_BT.shape[0], capacity, "cpu", dtype)
    parts, start = [], 0
    for count in chunks:
        segments = None
        if padding is not None and start <= int(padding.max()):
            segments = (torch.arange(start, start + count) >= padding[:, None]).int()
        hidden, cache = model.hidden(ids_BT[:, start : start + count], segments=segments, cache=cache)
        parts.append(model.logits(hidden))
        start += count
    assert cache is not None and cache.length == ids_BT.shape[1] <= cache.capacity
    return torch.cat(parts, 1)


def worst_difference(name: str, dtype: torch.dtype) -> float:
    """Largest relative difference between cached and uncached logits over all ways to cut, with and without growth."""
    model = small_model(VARIANTS[name], dtype)
    ids = random_ids(model.config, 3, 40)
    with torch.no_grad():
        expected = model(ids)
    return max(
        relative(in_chunks(model, ids, chunks, capacity, None), expected)
        for chunks in CHUNKINGS
        for capacity in (1, 64)
    )


@pytest.mark.parametrize("name", list(VARIANTS))
def test_cached_in_any_chunks_equals_uncached(name: str) -> None:
    assert worst_difference(name, torch.float32) <= 1e-5
    assert worst_difference(name, torch.float64) <= 1e-12


@pytest.mark.parametrize("name", list(VARIANTS))
def test_left_padded_rows_in_any_chunks_equal_rows_alone(name: str) -> None:
    model = small_model(VARIANTS[name], torch.float64)
    padding = torch.tensor([0, 5, 30])
    ids = random_ids(model.config, 3, 40)
    for chunks in CHUNKINGS:
        found = in_chunks(model, ids, chunks, 8, padding)
        assert found.isfinite().all()
        for row, pad in enumerate(padding.tolist()):
            with torch.no_grad():
                alone = model(ids[row : row + 1, pad:])
            assert relative(found[row : row + 1, pad:], alone) <= 1e-12


def test_broken_control_a_cache_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Cache.update

    def wrong(self: Cache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = right(self, layer, k, v)
        return keys.roll(1, 2), values

    monkeypatch.setattr(Cache, "update", wrong)
    assert worst_difference("llama", torch.float32) > 1e-3


def test_broken_control_positions_that_start_again_are_seen() -> None:
    model = small_model(VARIANTS["llama"])
    ids = random_ids(model.config, 1, 20)
    cache = Cache.empty(model.config, 1, 32, "cpu", torch.float32)
    with torch.no_grad():
        _, middle = model.hidden(ids[:, :10], cache=cache)
        wrong, _ = model.hidden(ids[:, 10:], cache=middle, positions=torch.arange(10))
        assert relative(model.logits(wrong), model(ids)[:, 10:]) > 1e-3


@torch.no_grad()
def test_a_superseded_cache_is_refused() -> None:
    model = small_model(VARIANTS["llama"])
    ids = random_ids(model.config, 1, 12)
    first = Cache.empty(model.config, 1, 4, "cpu", torch.float32)
    _, second = model.hidden(ids[:, :3], cache=first)
    _, third = model.hidden(ids[:, 3:], cache=second)  # grows
    assert second is not None and third is not None
    back = third.truncate(2)
    _, same_length = model.hidden(ids[:, :1], cache=back)
    assert same_length is not None and same_length.length == second.length
    for stale in (first, second, third, back):
        with pytest.raises(RuntimeError, match="superseded"):
            model.hidden(ids[:, :1], cache=stale)
    assert (second.length, third.length) == (3, 12)


@torch.no_grad()
def test_a_cache_emptied_forgets_its_padding() -> None:
    model = small_model(VARIANTS["llama"])
    ids = random_ids(model.config, 1, 6)
    padded = torch.tensor([[0, 0, 1, 1, 1, 1]])
    _, cache = model.hidden(ids, segments=padded, cache=Cache.empty(model.config, 1, 8, "cpu", torch.float32))
    assert cache is not None
    hidden, _ = model.hidden(ids, cache=cache.truncate(0))
    assert relative(model.logits(hidden), model(ids)) <= 1e-6


@torch.no_grad()
def test_truncated_and_reordered_caches_continue_as_if_fresh() -> None:
    model = small_model(VARIANTS["llama"], torch.float64)
    ids = random_ids(model.config, 2, 20)
    _, cache = model.hidden(ids, cache=Cache.empty(model.config, 2, 32, "cpu", torch.float64))
    assert cache is not None
    index = torch.tensor([1, 1, 0])
    branch = cache.truncate(15).reorder(index)
    other = random_ids(model.config, 3, 5, seed=9)
    hidden, _ = model.hidden(other, cache=branch)
    expected = model(torch.cat((ids[index, :15], other), 1))[:, 15:]
    assert relative(model.logits(hidden), expected) <= 1e-12
    with pytest.raises(RuntimeError, match="superseded"):
        cache.truncate(3)
    with pytest.raises(ValueError, match="cannot truncate"):
        Cache.empty(model.config, 1, 8, "cpu", torch.float64).truncate(1)


def test_mask_says_who_sees_whom() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 0]])
    mask = attention_mask(5, segments, 5, True, torch.float32, torch.device("cpu"))
    assert mask is not None
    seen = [[i for i in range(5) if mask[0, 0, t, i] == 0] for t in range(5)]
    assert seen == [[0], [0, 1], [2], [2, 3], [4]]
    both_ways = attention_mask(5, segments, 5, False, torch.float32, torch.device("cpu"))
    assert both_ways is not None
    assert [i for i in range(5) if both_ways[0, 0, 2, i] == 0] == [2, 3]
    assert attention_mask(5, None, 5, True, torch.float32, torch.device("cpu")) is None
    chunk = attention_mask(2, None, 5, True, torch.float32, torch.device("cpu"))
    assert chunk is not None
    assert (chunk[0, 0] == 0).tolist() == [[True] * 4 + [False], [True] * 5]
