from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.samples import ByteTokenizer, random_documents, shards_of
from trivium.data.batch import IGNORED
from trivium.data.packing import PackedRow, PackedRows, PrefixRows, documents_of
from trivium.data.shards import Shards

EOS = ByteTokenizer.eos_id
START = ByteTokenizer.bos_id


def assert_each_target_once(shards: Shards, rows: Sequence[PackedRow]) -> None:
    """The targets are the stream, each id once; the input before each is what precedes it in its document."""
    stream = shards.tokens(0, shards.num_tokens).tolist()
    starts = set(shards.offsets[:-1].tolist())
    learned = []
    for row in rows:
        real = int((row.segments > 0).sum())
        assert (row.segments[:real] > 0).all() and (row.segments[real:] == 0).all()
        assert (row.targets[real:] == IGNORED).all()
        for index in range(real):
            place = len(learned)
            assert row.ids[index] == (START if place in starts else stream[place - 1])
            learned.append(int(row.targets[index]))
    assert learned == stream


def documents_from(rows: Sequence[PackedRow]) -> list[str]:
    """The documents, put together from what rows show: each ends with the end-of-text id as a target."""
    documents: list[list[int]] = [[]]
    for row in rows:
        for target in row.targets[row.segments > 0].tolist():
            documents[-1].append(target)
            if target == EOS:
                documents.append([])
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
    assert documents_from(rows) == documents


def test_hand_worked_rows(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["abc", "d", "ef"], tmp_path / "s"), 4)
    a, b, c, d, e, f = map(ord, "abcdef")
    assert len(rows) == 3
    first, second, third = (rows.row(number) for number in range(3))
    assert first.ids.tolist() == [START, a, b, c] and first.targets.tolist() == [a, b, c, EOS]
    assert first.positions.tolist() == [0, 1, 2, 3] and first.segments.tolist() == [1, 1, 1, 1]
    assert first.is_plain and not second.is_plain
    assert second.ids.tolist() == [START, d, START, e] and second.targets.tolist() == [d, EOS, e, f]
    assert second.positions.tolist() == [0, 1, 0, 1] and second.segments.tolist() == [1, 1, 2, 2]
    assert third.ids.tolist() == [f, 0, 0, 0] and third.targets.tolist() == [EOS, IGNORED, IGNORED, IGNORED]
    assert third.segments.tolist() == [1, 0, 0, 0]
    for number in (-1, 3):
        with pytest.raises(IndexError):
            rows.row(number)


def test_one_document_that_fills_its_rows_is_plain(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(["a" * 63], tmp_path / "s"), 16)  # 64 ids with the end of text
    assert len(rows) == 4 and rows.are_plain and all(row.is_plain for row in all_rows(rows))
    assert not PackedRows(rows.shards, 10).are_plain
    assert not PackedRows(shards_of(["a" * 31, "b" * 32], tmp_path / "t"), 32).are_plain


def across(row: PackedRow, stream: np.ndarray, start: int) -> PackedRow:
    """A row as careless packing makes it: a document's first id is predicted from the last of the one before."""
    ids = row.ids.copy()
    for index in np.flatnonzero(row.segments[1:] > row.segments[:-1]) + 1:
        ids[index] = stream[start + index - 2]
    return replace(row, ids=ids)


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


def test_prefixes_of_documents_are_seen_and_the_rest_is_learned(tmp_path: Path) -> None:
    shards = shards_of(random_documents(60, longest=30), tmp_path / "s")
    plain, rows = PackedRows(shards, 32), PrefixRows(shards, 32, seed=4)
    shares, lengths = set(), Counter()
    for number in range(len(rows)):
        whole, row, again, later = plain.row(number), rows.row(number), rows.row(number), rows.row(number, epoch=1)
        assert row.prefix is not None and again.prefix is not None and later.prefix is not None
        assert np.array_equal(row.prefix, again.prefix)
        shares.add(not np.array_equal(row.prefix, later.prefix))
        for begin, end in documents_of(whole):
            prefix = row.prefix[begin:end]
            length = int(prefix.sum())
            assert 1 <= length <= end - begin and prefix[:length].all(), "a beginning, and no more"
            expected = whole.targets[begin:end].copy()
            expected[: length - 1] = IGNORED  # what a prefix position would predict, it sees
            assert np.array_equal(row.targets[begin:end], expected)
            if end - begin == 20:
                lengths[length] += 1
        assert not row.prefix[whole.segments == 0].any()
        assert np.array_equal(row.ids, whole.ids)
    assert True in shares and rows.collate([rows.row(0)]).prefix is not None
