from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.samples import ByteTokenizer, random_documents, shards_of
from trivium.data.batch import IGNORED, Batch
from trivium.data.packing import PackedRows, collate
from trivium.data.prepare import prepare
from trivium.data.settings import DataSettings
from trivium.data.sources import (
    EvaluationRows,
    PackedSource,
    RowId,
    evaluation_rows,
    training_source,
)

Sources = list[tuple[PackedRows, float | None]]


@pytest.fixture
def three(tmp_path: Path) -> Sources:
    """Three sources of different sizes, mixed by weight."""
    sizes_and_weights = ((30, 0.5), (12, 0.3), (5, 0.2))
    return [
        (PackedRows(shards_of(random_documents(size, seed=size, longest=90), tmp_path / str(size)), 16), weight)
        for size, weight in sizes_and_weights
    ]


def source(sources: Sources, rank: int = 0, world_size: int = 1, micro: int = 4, step: int = 12) -> PackedSource:
    return PackedSource(
        sources, rows_per_step=step, rows_per_micro_batch=micro, seed=7, rank=rank, world_size=world_size
    )


Ids = Callable[[int, int, int], list[RowId]]


def log_through_kills(ids: Ids, steps: int, seed: int) -> list[RowId]:
    """The rows trained on in a run that is killed again and again and goes on with another number of processes.

    `ids(step, rank, world_size)` is what a rank trains on. Steps past the last checkpoint are lost and done again.
    """
    draw = random.Random(seed)
    log: list[list[RowId]] = []
    worlds = [1, 2, 3, 1]
    while len(log) < steps:
        world_size = worlds[0] if len(worlds) == 1 else worlds.pop(0)
        stop = min(steps, len(log) + draw.randint(1, max(2, steps // 4)))
        for step in range(len(log), stop):
            log.append([row for rank in range(world_size) for row in ids(step, rank, world_size)])
        if len(log) < steps:
            del log[len(log) - draw.randint(0, 3) :]
    return [row for step in log for row in step]


def assert_each_row_exactly_once(ids: Ids, undisturbed: list[RowId], sizes: list[int], steps: int) -> None:
    """R8: the order is that of the undisturbed run, and each row comes once per epoch."""
    for seed in range(8):
        log = log_through_kills(ids, steps, seed)
        assert log == undisturbed
    for number, size in enumerate(sizes):
        counts = Counter(row for row in undisturbed if row.source == number)
        assert set(counts.values()) == {1}
        assert max(row.epoch for row in counts) >= 3, "the run must be three epochs long"
        for epoch in range(3):
            assert sorted(row.row for row in counts if row.epoch == epoch) == list(range(size))


@pytest.mark.parametrize("weighted", [True, False])
def test_every_row_is_trained_once_per_epoch_through_kills_and_world_sizes(three: Sources, weighted: bool) -> None:
    sources = three if weighted else [(rows, None) for rows, _ in three]
    sizes = [len(rows) for rows, _ in sources]
    steps = 80 if weighted else 4 * sum(sizes) // 12 + 1
    if weighted:
        steps = 4 * 10 * max(-(-len(rows) // int(weight * 10)) for rows, weight in sources) // 12 + 1  # type: ignore[operator]
    undisturbed = [row for step in range(steps) for row in source(sources).row_ids(step)]

    def ids(step: int, rank: int, world_size: int) -> list[RowId]:
        return source(sources, rank, world_size).rank_row_ids(step)

    assert_each_row_exactly_once(ids, undisturbed, sizes, steps)


def test_a_shuffle_that_depends_on_the_world_size_is_caught(three: Sources) -> None:
    """Broken control: each rank shuffles a slice of its own, as samplers that split first and shuffle after do."""
    sizes = [len(rows) for rows, _ in three]
    undisturbed = [row for step in range(60) for row in source(three).row_ids(step)]

    def ids(step: int, rank: int, world_size: int) -> list[RowId]:
        share = 12 // world_size
        mine = PackedSource(three, rows_per_step=share, rows_per_micro_batch=4, seed=7 + rank)
        return mine.row_ids(step)

    with pytest.raises(AssertionError):
        assert_each_row_exactly_once(ids, undisturbed, sizes, 60)


def test_a_loader_that_starts_the_epoch_anew_is_caught(three: Sources) -> None:
    """Broken control: after each restart the order begins from the top."""
    sizes = [len(rows) for rows, _ in three]
    undisturbed = [row for step in range(60) for row in source(three).row_ids(step)]
    calls: list[int] = []

    def ids(step: int, rank: int, world_size: int) -> list[RowId]:
        if calls and step != calls[-1] and step != calls[-1] + 1:
            calls.clear()
        calls.append(step)
        return source(three, rank, world_size).rank_row_ids(step - calls[0])

    with pytest.raises(AssertionError):
        assert_each_row_exactly_once(ids, undisturbed, sizes, 60)


def rows_of(batches: list[Batch]) -> list[tuple[list[int], ...]]:
    """Each row of the batches, whether it has segments or not, in one form."""
    rows = []
    for batch in batches:
        length = batch.ids.shape[1]
        for index in range(batch.ids.shape[0]):
            positions = torch.arange(length) if batch.positions is None else batch.positions[index]
            segments = torch.ones(length) if batch.segments is None else batch.segments[index]
            columns = (batch.ids[index], batch.targets[index], positions, segments)
            rows.append(tuple(column.tolist() for column in columns))
    return rows


def test_batches_hold_the_rows_of_the_order_whatever_the_ranks_and_micro_batches(three: Sources) -> None:
    for step in (0, 1, 40):
        expected = []
        for number, _, row in source(three).row_ids(step):
            packed = three[number][0].row(row)
            expected.append(
                tuple(column.tolist() for column in (packed.ids, packed.targets, packed.positions, packed.segments))
            )
        for world_size in (1, 2, 3, 5, 12, 13):
            for micro in (1, 3, 4, 100):
                batches = [
                    batch
                    for rank in range(world_size)
                    for batch in source(three, rank, world_size, micro).micro_batches(step)
                ]
                assert rows_of(batches) == expected
                assert all(batch.ids.shape[0] <= micro for batch in batches)


def test_the_shapes_and_types_of_a_batch(three: Sources) -> None:
    batch = next(iter(source(three).micro_batches(0)))
    assert batch.positions is not None and batch.segments is not None
    assert batch.ids.shape == batch.targets.shape == batch.positions.shape == batch.segments.shape == (4, 16)
    assert [t.dtype for t in (batch.ids, batch.targets, batch.positions, batch.segments)] == [
        torch.int64,
        torch.int64,
        torch.int64,
        torch.int32,
    ]


def loss_and_gradient(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of one attention layer, written out in fp64, that keeps apart what the batch keeps apart."""
    generator = torch.Generator().manual_seed(0)
    width, vocabulary = 8, 258
    embedding = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64, requires_grad=True)
    place = torch.randn(64, width, generator=generator, dtype=torch.float64)
    length = batch.ids.shape[1]
    positions = torch.arange(length).expand_as(batch.ids) if batch.positions is None else batch.positions
    hidden = embedding[batch.ids] + place[positions]
    allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(batch.ids.shape[0], -1, -1)
    if batch.segments is not None:
        allowed = allowed & (batch.segments[:, :, None] == batch.segments[:, None, :])
    scores = (hidden @ hidden.transpose(1, 2)).masked_fill(~allowed, -torch.inf)
    logits = scores.softmax(-1) @ hidden @ embedding.T
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    loss.backward()
    assert embedding.grad is not None
    return loss.detach(), embedding.grad


def test_the_fast_path_learns_exactly_what_the_slow_path_does(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["all work and no play makes a dull boy " * 9], tmp_path / "s"), 16)
    packed = [rows.row(number) for number in range(6)]
    fast, slow = collate(packed), collate(packed, always_segments=True)
    assert fast.segments is None and fast.positions is None and slow.segments is not None
    assert fast.num_tokens == slow.num_tokens == 96 and fast.num_targets == slow.num_targets == 96
    for one, other in zip(loss_and_gradient(fast), loss_and_gradient(slow), strict=True):
        assert torch.equal(one, other)


def test_a_packed_document_learns_exactly_what_it_does_alone(tmp_path: Path) -> None:
    """R12, the data's side: the loss of packed rows is the sum of the losses of their documents."""
    documents = random_documents(6, longest=4)
    packed = PackedRows(shards_of(documents, tmp_path / "s"), 64)
    assert len(packed) == 1
    alone = [PackedRows(shards_of([text], tmp_path / str(n)), 64) for n, text in enumerate(documents)]
    loss, gradient = loss_and_gradient(collate([packed.row(0)]))
    parts = [loss_and_gradient(collate([rows.row(0)])) for rows in alone]
    torch.testing.assert_close(loss, sum(part[0] for part in parts), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, sum(part[1] for part in parts), rtol=1e-12, atol=1e-12)
    leaking = collate([packed.row(0)])
    leaking = Batch(leaking.ids, leaking.targets, leaking.positions)
    assert abs(loss_and_gradient(leaking)[0] - loss) > 0.1, "broken control: without segments it differs"


def test_the_fast_path_is_taken_only_when_every_row_allows_it(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["a" * 40, "b" * 3], tmp_path / "s"), 16)
    assert collate([rows.row(0), rows.row(1)]).segments is None
    assert collate([rows.row(0), rows.row(2)]).segments is not None


def test_the_worst_case_has_all_a_batch_can_have(tmp_path: Path, three: Sources) -> None:
    batch = source(three, micro=5).worst_case()
    assert batch.ids.shape == (5, 16) and batch.segments is not None
    assert source(three, world_size=6, micro=5).worst_case().ids.shape == (2, 16)
    book = PackedRows(shards_of(["a" * 200], tmp_path / "b"), 16)
    assert source([(book, None)]).worst_case().segments is not None, "its last row is padded"
    whole = PackedRows(shards_of(["a" * 159], tmp_path / "w"), 16)
    assert source([(whole, None)]).worst_case().segments is None


def test_steps_per_epoch(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["a" * 159], tmp_path / "s"), 16)
    assert source([(rows, None)], step=4).steps_per_epoch == 3
    third = source([(rows, None)], step=4).row_ids(2)
    assert [row.epoch for row in third] == [0, 0, 1, 1], "epochs follow each other within a step"


def test_sources_must_agree(three: Sources) -> None:
    with pytest.raises(ValueError, match="rows of one length"):
        source([three[0], (PackedRows(three[1][0].shards, 8), 0.5)])
    with pytest.raises(ValueError, match="weight to every source or to none"):
        source([three[0], (three[1][0], None)])


def test_evaluation_goes_through_all_rows_once_over_the_ranks(three: Sources) -> None:
    rows = three[0][0]
    everything = rows_of([collate([rows.row(number)], always_segments=True) for number in range(len(rows))])
    for world_size in (1, 2, 3, len(rows) + 2):
        shares = [EvaluationRows(rows, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert rows_of([batch for share in shares for batch in share]) == everything
        assert [len(list(share)) for share in shares] == [len(share) for share in shares]
        assert rows_of(list(shares[0])) == rows_of(list(shares[0])), "it may be gone through again"
    some = EvaluationRows(rows, 4, max_rows=5)
    assert rows_of(list(some)) == [everything[n * len(rows) // 5] for n in range(5)]
    assert rows_of(list(EvaluationRows(rows, 4, max_rows=10**9))) == everything


def test_from_settings_to_batches(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in ["one", "two", "three", "four"]))
    settings = DataSettings(
        train=str(tmp_path / "a.jsonl"),
        held_out_fraction=0.4,
        sequence_length=4,
        rows_per_step=3,
        rows_per_micro_batch=2,
    )
    prepared = prepare(settings, ByteTokenizer(), tmp_path / "cache")
    batches = list(training_source(prepared, settings, seed=1).micro_batches(0))
    assert [batch.ids.shape for batch in batches] == [(2, 4), (1, 4)]
    held_out = evaluation_rows(prepared, settings)
    assert held_out is not None and prepared.held_out is not None
    assert sum(batch.num_targets for batch in held_out) == prepared.held_out.num_tokens
    nothing = prepare(settings.model_copy(update={"held_out_fraction": 0.0}), ByteTokenizer(), tmp_path / "cache")
    assert evaluation_rows(nothing, settings) is None


def test_ten_million_rows_cost_no_more_than_ten(tmp_path: Path) -> None:
    """R8, long figures: nothing is stored and any step is reached at once."""

    class Huge(PackedRows):
        def __len__(self) -> int:
            return 10_000_000

    rows = Huge(shards_of(["a"], tmp_path / "s"), 16)
    far = source([(rows, 0.7), (rows, 0.3)], step=512).row_ids(10**8)
    assert len(set(far)) == 512 and max(np.array([row.row for row in far])) > 5_000_000
