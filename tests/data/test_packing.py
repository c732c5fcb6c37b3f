from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.samples import ByteTokenizer, random_documents, shards_of
from trivium.data.batch import IGNORED
from trivium.data.packing import PackedRow, PackedRows
from trivium.data.shards import Shards

EOS = ByteTokenizer.eos_id


def assert_each_target_once(shards: Shards, rows: Sequence[PackedRow]) -> None:
    """The (document, position) of every target, found through positions and segments alone, each exactly once."""
    stream = shards.tokens(0, shards.num_tokens).tolist()
    learned = []
    place = 0
    for row in rows:
        real = int((row.segments > 0).sum())
        assert (row.segments[:real] > 0).all() and (row.segments[real:] == 0).all()
        assert (row.targets[real:] == IGNORED).all()
        for index in range(real):
            assert row.ids[index] == stream[place + index]
            if row.targets[index] != IGNORED:
                assert row.targets[index] == stream[place + index + 1]
                learned.append(place + index + 1)
        place += real
    starts = set(shards.offsets[:-1].tolist())
    assert learned == [position for position in range(shards.num_tokens) if position not in starts]


def documents_from(rows: Sequence[PackedRow]) -> list[str]:
    """The documents, put together from what rows show: a new segment or an end-of-text id starts a new one."""
    documents: list[list[int]] = [[]]
    for row in rows:
        for index in range(int((row.segments > 0).sum())):
            if not documents[-1]:
                documents[-1].append(int(row.ids[index]))
            if row.targets[index] == IGNORED:
                documents.append([])
            else:
                documents[-1].append(int(row.targets[index]))
    return [ByteTokenizer().decode(ids[:-1]) for ids in documents if ids]


def assert_documents_apart(shards: Shards, rows: Sequence[PackedRow]) -> None:
    """Segments and positions are those of the documents in the stream."""
    document_of = np.repeat(np.arange(shards.num_documents), np.diff(shards.offsets))
    place = 0
    for row in rows:
        real = int((row.segments > 0).sum())
        mine = document_of[place : place + real]
        assert np.array_equal(row.segments[:real], mine - mine[0] + 1)
        for index in range(real):
            start = max(int(shards.offsets[mine[index]]) - place, 0)
            assert row.positions[index] == index - start
            if row.targets[index] != IGNORED:
                assert document_of[place + index + 1] == mine[index]
        place += real


def all_rows(rows: PackedRows) -> list[PackedRow]:
    return [rows.row(number) for number in range(len(rows))]


@pytest.mark.parametrize("length", [2, 3, 8, 17, 64, 5000])
@pytest.mark.parametrize("longest", [1, 8, 200])
def test_documents_are_rebuilt_from_rows_and_each_target_is_learned_once(
    tmp_path: Path, length: int, longest: int
) -> None:
    documents = random_documents(40, seed=longest, longest=longest)
    shards = shards_of(documents, tmp_path / "s", shard_tokens=97)
    rows = all_rows(PackedRows(shards, length))
    assert_each_target_once(shards, rows)
    assert_documents_apart(shards, rows)
    if length * len(rows) >= shards.num_tokens:
        assert documents_from(rows) == documents


def test_hand_worked_rows(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["abc", "d", "ef"], tmp_path / "s"), 4)
    a, b, c, d, e, f = map(ord, "abcdef")
    assert len(rows) == 2
    first, second = rows.row(0), rows.row(1)
    assert first.ids.tolist() == [a, b, c, EOS] and first.targets.tolist() == [b, c, EOS, IGNORED]
    assert first.positions.tolist() == [0, 1, 2, 3] and first.segments.tolist() == [1, 1, 1, 1]
    assert first.is_plain and not second.is_plain
    assert second.ids.tolist() == [d, EOS, e, f] and second.targets.tolist() == [EOS, IGNORED, f, EOS]
    assert second.positions.tolist() == [0, 1, 0, 1] and second.segments.tolist() == [1, 1, 2, 2]
    padded = PackedRows(rows.shards, 5).row(1)
    assert padded.ids.tolist() == [EOS, e, f, EOS, 0] and padded.segments.tolist() == [1, 2, 2, 2, 0]
    assert padded.targets.tolist() == [IGNORED, f, EOS, IGNORED, IGNORED]
    for number in (-1, 2):
        with pytest.raises(IndexError):
            rows.row(number)


def test_one_document_that_fills_its_rows_is_plain(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["a" * 64], tmp_path / "s"), 16)  # 65 ids: 64 with a successor
    assert len(rows) == 4 and rows.are_plain and all(row.is_plain for row in all_rows(rows))
    assert not PackedRows(rows.shards, 10).are_plain
    assert not PackedRows(shards_of(["a" * 31, "b" * 32], tmp_path / "t"), 32).are_plain


def across(row: PackedRow, stream: np.ndarray, start: int) -> PackedRow:
    """A row as careless packing makes it: what follows a document is predicted from it."""
    following = stream[start + 1 : start + 1 + len(row.ids)]
    return replace(row, targets=np.concatenate([following, np.full(len(row.ids) - len(following), IGNORED)]))


def twice(row: PackedRow, stream: np.ndarray, start: int) -> PackedRow:
    """A row without its last target, which an off-by-one in cutting loses."""
    targets = row.targets.copy()
    targets[-1] = IGNORED
    return replace(row, targets=targets)


def leaking(row: PackedRow, stream: np.ndarray, start: int) -> PackedRow:
    return replace(row, segments=np.minimum(row.segments, 1))


def running_on(row: PackedRow, stream: np.ndarray, start: int) -> PackedRow:
    return replace(row, positions=np.arange(len(row.ids)))


@pytest.mark.parametrize("broken", [across, twice, leaking, running_on])
def test_careless_packing_is_caught(tmp_path: Path, broken: Callable[..., PackedRow]) -> None:
    """Broken controls."""
    shards = shards_of(random_documents(40), tmp_path / "s")
    stream = shards.tokens(0, shards.num_tokens)
    rows = [broken(row, stream, 8 * number) for number, row in enumerate(all_rows(PackedRows(shards, 8)))]
    with pytest.raises(AssertionError):
        assert_each_target_once(shards, rows)
        assert_documents_apart(shards, rows)


def test_rows_are_random_access(tmp_path: Path) -> None:
    shards = shards_of(random_documents(300), tmp_path / "s")
    rows = PackedRows(shards, 16)
    expected = all_rows(rows)
    numbers = list(range(len(rows)))
    random.Random(0).shuffle(numbers)
    for number in numbers:
        row = PackedRows(shards, 16).row(number)
        for name in ("ids", "targets", "positions", "segments"):
            assert np.array_equal(getattr(row, name), getattr(expected[number], name))
