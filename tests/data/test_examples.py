"""Rows of examples: each piece in one row, the draw of a row its own, batches that keep examples apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.samples import byte_marks, random_documents, shards_of
from data.test_tasks import objective
from trivium.data.batch import IGNORED, Batch
from trivium.data.examples import ExampleRows, PairPieces, PairTask, TextPieces, collate_examples, pack
from trivium.data.sources import EvaluationRows, PackedSource
from trivium.data.tasks import Example, build_task
from trivium.errors import UserError

MASKED = {"name": "masked"}
SPANS = {"name": "spans"}
LENGTH = 48


def rows_of(folder: Path, case: dict[str, object], seed: int = 1, longest: int = 150) -> ExampleRows:
    shards = shards_of(random_documents(40, seed=2, longest=longest), folder / f"shards-{longest}")
    return ExampleRows(TextPieces(shards, build_task(objective(case), byte_marks()), LENGTH), LENGTH, seed)


def test_pieces_are_the_documents_cut_to_size(tmp_path: Path) -> None:
    documents = ["a" * 100, "b", "", "cd", "e" * 47, "f" * 48]
    shards = shards_of(documents, tmp_path / "s")
    pieces = TextPieces(shards, build_task(objective(MASKED), byte_marks()), LENGTH)  # room for 47 and an end
    texts = [
        bytes(shards.tokens(start, stop).astype(np.uint8)).decode()
        for start, stop in zip(pieces.starts.tolist(), pieces.stops.tolist(), strict=True)
    ]
    assert texts == ["a" * 47, "a" * 47, "a" * 6, "cd", "e" * 47, "f" * 47], (
        "the ends of documents, and single ids, are left out"
    )
    assert pieces.rooms.tolist() == [[0, len(text) + 1] for text in texts]


def test_what_has_no_room_is_refused(tmp_path: Path) -> None:
    task = build_task(objective(SPANS), byte_marks())
    with pytest.raises(UserError, match=r"data.sequence_length=2 has no room"):
        TextPieces(shards_of(["abc"], tmp_path / "a"), task, 2)
    with pytest.raises(UserError, match="no text has 2 tokens"):
        TextPieces(shards_of(["a", "b"], tmp_path / "b"), task, 16)


def test_rows_take_as_many_pieces_as_fit() -> None:
    rooms = np.array([[3, 1], [3, 1], [3, 1], [1, 8], [1, 1], [1, 1]])
    assert pack(rooms, 8).tolist() == [0, 2, 3, 4, 6]
    assert pack(np.array([[8, 8]] * 3), 8).tolist() == [0, 1, 2, 3]
    draw = np.random.default_rng(0)
    rooms = draw.integers(1, 20, (500, 2))
    bounds = pack(rooms, 32)
    sums = np.add.reduceat(rooms, bounds[:-1], axis=0)
    assert sums.max() <= 32 and bounds[-1] == 500
    following = rooms[bounds[1:-1]]
    assert ((sums[:-1] + following).max(axis=1) > 32).all(), "the next piece would not have fitted"


@pytest.mark.parametrize("case", [MASKED, SPANS, {"name": "denoise"}, {"name": "mixture"}, {"name": "prefix"}])
def test_rows_fit_and_hold_every_piece_once(tmp_path: Path, case: dict[str, object]) -> None:
    rows = rows_of(tmp_path, case)
    examples = [example for number in range(len(rows)) for example in rows.row(number)]
    assert len(examples) == len(rows.pieces.rooms)
    batch = rows.collate([rows.row(number) for number in range(len(rows))])
    assert batch.ids.shape[1] <= LENGTH and (batch.source_ids is None or batch.source_ids.shape[1] <= LENGTH)
    learned = sum(int((example.targets != IGNORED).sum()) for example in examples)
    assert batch.num_targets == learned > 0
    with pytest.raises(IndexError):
        rows.row(len(rows))


def assert_draws_belong_to_the_epoch(make: Callable[[], ExampleRows]) -> None:
    """A row is the same whenever it is asked for, another in another epoch, and unlike its neighbours."""
    one, two = make(), make()
    order = list(range(len(one)))
    first = {(epoch, number): one.row(number, epoch) for epoch in range(3) for number in order}
    for epoch, number in reversed(list(first)):
        for mine, theirs in zip(first[epoch, number], two.row(number, epoch), strict=True):
            assert np.array_equal(mine.ids, theirs.ids) and np.array_equal(mine.targets, theirs.targets)
    for number in order:
        if sum(len(example.ids) for example in first[0, number]) > 20:
            seen = {tuple(tuple(e.targets) for e in first[epoch, number]) for epoch in range(3)}
            assert len(seen) > 1, f"row {number} is alike in every epoch"


@pytest.mark.parametrize("case", [MASKED, SPANS])
def test_draws_depend_on_seed_epoch_and_row_only(tmp_path: Path, case: dict[str, object]) -> None:
    assert_draws_belong_to_the_epoch(lambda: rows_of(tmp_path, case))
    one, other = (rows_of(tmp_path, case, seed=seed) for seed in (1, 2))
    pairs = [pair for number in range(len(one)) for pair in zip(one.row(number), other.row(number), strict=True)]
    assert any(not np.array_equal(a.targets, b.targets) for a, b in pairs)


def test_control_the_same_masks_in_every_epoch_are_caught(tmp_path: Path) -> None:
    class Static(ExampleRows):
        def row(self, number: int, epoch: int = 0) -> list[Example]:
            return super().row(number, 0)

    def make() -> ExampleRows:
        return Static(rows_of(tmp_path, MASKED).pieces, LENGTH, 1)

    with pytest.raises(AssertionError, match="alike in every epoch"):
        assert_draws_belong_to_the_epoch(make)


def test_a_source_asks_for_rows_by_epoch_and_evaluation_draws_alike(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, MASKED)
    source = PackedSource([(rows, None)], rows_per_step=6, rows_per_micro_batch=4, seed=3)
    for step in range(2 * source.steps_per_epoch):
        ids = source.row_ids(step)
        expected = collate_examples([rows.row(row, epoch) for _, epoch, row in ids[:4]], 0)
        batch = next(source.micro_batches(step))
        assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.targets, expected.targets)
    evaluation = EvaluationRows(rows, 4)
    for one, two in zip(evaluation, evaluation, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.targets, two.targets)


def test_a_batch_by_hand() -> None:
    def example(*ids: int) -> Example:
        return Example(np.array(ids), np.array(ids) + 100, np.array([*ids, 9]))

    batch = collate_examples([[example(1, 2), example(3)], [example(4)]], pad_id=7)
    assert batch.ids.tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch.targets.tolist() == [[101, 102, 103], [104, IGNORED, IGNORED]]
    assert batch.positions is not None and batch.positions.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert batch.segments is not None and batch.segments.tolist() == [[1, 1, 2], [1, 0, 0]]
    assert batch.source_ids is not None and batch.source_ids.tolist() == [[1, 2, 9, 3, 9], [4, 9, 7, 7, 7]]
    assert batch.source_positions is not None and batch.source_positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch.source_segments is not None and batch.source_segments.tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert [batch.num_tokens, batch.num_targets] == [11, 4]
    whole = collate_examples([[example(1, 2)], [example(3, 4)]], pad_id=7)
    assert whole.segments is None and whole.source_segments is None and whole.positions is None


def test_the_worst_case_is_as_wide_as_any_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, SPANS)
    worst = rows.worst_case([rows.row(0), rows.row(1)])
    assert worst.segments is not None and worst.source_ids is not None
    for epoch in range(3):
        for number in range(len(rows)):
            batch: Batch = rows.collate([rows.row(number, epoch)])
            assert batch.source_ids is not None
            assert batch.ids.shape[1] <= worst.ids.shape[1] <= LENGTH
            assert batch.source_ids.shape[1] <= worst.source_ids.shape[1] <= LENGTH
    assert worst.num_targets == worst.ids.numel()


def test_pairs_become_examples_and_long_ones_are_cut(tmp_path: Path) -> None:
    sources, targets = shards_of(["abc", "d" * 30], tmp_path / "s"), shards_of(["xy", "z" * 9], tmp_path / "t")
    pieces = PairPieces(sources, targets, PairTask((), (256,), 259), 16)
    rows = ExampleRows(pieces, 16, seed=0)
    first, second = rows.row(0)[0], rows.row(1)[0]
    assert first.source is not None and first.source.tolist() == [*b"abc", 256]
    assert (first.ids.tolist(), first.targets.tolist()) == ([259, *b"xy"], [*b"xy", 256])
    assert second.source is not None and second.source.tolist() == [*b"d" * 15, 256]
    assert pieces.num_cut == 1
