from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from trivium.data import streams
from trivium.data.readers import read_rows
from trivium.errors import UserError

PROGRAM = Path(__file__).parent / "programs" / "read_hostile.py"
BLOCK = 4 << 20


def gzip_repeated(block: bytes, times: int) -> bytes:
    """`block` over and over, as gzip members: a bomb that takes no time to build."""
    return gzip.compress(block, 9) * times


def zstd_repeated(block: bytes, times: int) -> bytes:
    """`block` over and over, as zstd frames that declare their size."""
    return zstandard.compress(block) * times


def zstd_frame(block: bytes, times: int) -> bytes:
    """`block` over and over in one zstd frame that declares its whole size."""
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=len(block) * times)
    return b"".join([packer.compress(block) for _ in range(times)] + [packer.flush()])


def write_parquet_bombs(folder: Path) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    many = folder / "many.parquet"
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 100_000]))
    parquet.write_table(pa.table({"text": word}), many, compression="zstd")
    long = folder / "long.parquet"
    parquet.write_table(pa.table({"text": ["x" * (80 << 20)]}), long, compression="zstd")
    inside = folder / "inside.parquet.gz"
    inside.write_bytes(gzip_repeated(b"\0" * BLOCK, 128))
    return [many, long, inside]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bombs")
    contents = {
        "zeros.txt.gz": gzip_repeated(b"\0" * BLOCK, 256),
        "zeros.lines.txt.gz": gzip_repeated(b"\0" * BLOCK, 256),
        "zeros.jsonl.zst": zstd_repeated(b"\0" * BLOCK, 256),
        "zeros.csv.zst": zstd_repeated(b"a" * BLOCK, 256),
        "zeros.tsv.gz": gzip_repeated(b"a" * BLOCK, 256),
        "zeros.py.zst": zstd_frame(b"#" * BLOCK, 64),
        "blank.jsonl.gz": gzip_repeated(b"\n" * BLOCK, 256),
        "blank.csv.zst": b"".join([zstandard.compress(b"a,b\n"), zstd_repeated(b"\r\n" * (BLOCK // 2), 256)]),
        "blank.lines.txt.gz": gzip_repeated(b" \n" * (BLOCK // 2), 256),
        "spaces.json.gz": gzip.compress(b"[") + gzip_repeated(b" " * BLOCK, 256),
        "string.json.zst": zstandard.compress(b'["') + zstd_repeated(b"a" * BLOCK, 256),
        "object.json.gz": gzip.compress(b'{"a": "') + gzip_repeated(b"a" * BLOCK, 256),
        "quote.csv.gz": gzip.compress(b'a,b\n1,"') + gzip_repeated(b"a,\n" * (BLOCK // 3), 256),
        "deep.jsonl": b"[" * 1_000_000 + b"]" * 1_000_000,
        "deep.json": b"[" * 1_000_000 + b"]" * 1_000_000,
        "deep.jsonl.zst": zstandard.compress(b'{"a":' * 1_000_000),
        "nested.txt.gz.gz": gzip.compress(gzip_repeated(b"\0" * BLOCK, 256)),
        "wide.json": b"[" + b"1," * 500_000 + b"1]",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents] + write_parquet_bombs(folder)


# Two on most processors; the slowest seen took 2.5 for the largest of them.
SECONDS = 4


def test_bombs_are_stopped_within_seconds_and_256_megabytes(bombs: list[Path]) -> None:
    """R20. The limit on memory is real: the reading process has 256 MB of address space to spare."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, bombs)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(bombs)
    for result in results:
        assert result["error"].startswith(result["file"]), result
        assert "\n" not in result["error"]
        assert result["seconds"] < SECONDS, result


def test_without_counting_the_bombs_go_off(bombs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: a reader that believes the file unpacks far beyond the limit."""
    monkeypatch.setattr(streams.Expansion, "count", lambda self, num_bytes: None)
    total = 0
    with streams.open_bytes(bombs[0]) as stream:
        while total <= streams.FREE_EXPANSION_BYTES * 4 and (chunk := stream.read(1 << 20)):
            total += len(chunk)
    assert total > streams.FREE_EXPANSION_BYTES * 4


def test_honest_compressed_files_pass(tmp_path: Path) -> None:
    text = "".join(f"line {number} of a log that repeats itself\n" for number in range(300_000))
    for name, data in (("a.txt.gz", gzip.compress(text.encode())), ("b.txt.zst", zstandard.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        assert streams.read_document(tmp_path / name) == text


def test_several_members_and_frames_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert [streams.read_document(tmp_path / name) for name in ("a.txt.gz", "b.txt.zst")] == ["one two"] * 2


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_stream_that_ends_too_early_is_damaged(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps({"text": os.urandom(8).hex()}) + "\n" for _ in range(5000)).encode()
    packed = gzip.compress(lines) if name.endswith("gz") else zstandard.compress(lines)
    path = tmp_path / name
    for cut in (3, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:cut])
        with pytest.raises(UserError, match=rf"{name}: damaged, or not a (gzip|zstd) file"):
            list(read_rows(path))
    path.write_bytes(b"this is not compressed at all")
    with pytest.raises(UserError, match="damaged, or not"):
        list(read_rows(path))


def test_lines_have_a_limit_far_above_ten_megabytes(tmp_path: Path) -> None:
    long = json.dumps({"text": "a" * (10 << 20)})
    path = tmp_path / "a.jsonl"
    path.write_text(long + "\n" + long + "\n")
    assert [len(row.values["text"]) for row in read_rows(path)] == [10 << 20] * 2
    path.write_text('{"text": "short"}\n' + json.dumps({"text": "a" * streams.MAX_LINE_BYTES}) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: longer than 32 MB"):
        list(read_rows(path))


def test_documents_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "a.txt"
    path.write_text("a" * (1 << 20))
    assert len(streams.read_document(path)) == 1 << 20
    path.write_text("a" * ((1 << 20) + 1))
    with pytest.raises(UserError, match="longer than 1 MB"):
        streams.read_document(path)


def test_text_is_strict_utf8_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe2\x82\xac\xef\xbb\xbf")
    assert streams.read_document(path) == "one\r\ntwo €\ufeff"
    assert list(streams.read_lines(path)) == [(1, "one\r\n"), (2, "two €\ufeff")]
    path.write_bytes(b"one\ntwo \xff three\n")
    for read in (streams.read_document, lambda p: list(streams.read_lines(p))):
        with pytest.raises(UserError, match=r"a\.txt, line 2: byte 5 \(0xff\) is not UTF-8 text"):
            read(path)
    path.write_bytes(b"one\n\xe2\x82")
    with pytest.raises(UserError, match="line 2: byte 1 "):
        streams.read_document(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.txt.gz"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(.*No such file"):
            streams.open_bytes(tmp_path / name)
