from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from trivium.data.locations import HubSet
from trivium.data.readers import hub_rows, read_rows
from trivium.errors import UserError

ROWS = [
    {"text": "plain", "label": "0"},
    {"text": 'say "hi", then\nleave', "label": "NaN"},
    {"text": "  Grüße, 世界 🙂 ", "label": "007"},
    {"text": "null", "label": ""},
]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "ndjson": lambda rows: "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    path = tmp_path / f"a.{kind}{packing}"
    path.write_bytes(PACKERS[packing](WRITERS[kind](ROWS)))
    rows = list(read_rows(path))
    assert [dict(row.values) for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert {row.file for row in rows} == {str(path)}


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbftext\tlabel\r\n"half open\t1\r\n\r\nsay ""hi""\t\r\n\t NaN '))
    values = [dict(row.values) for row in read_rows(path)]
    assert values == [
        {"text": '"half open', "label": "1"},
        {"text": 'say ""hi""', "label": ""},
        {"text": "", "label": " NaN "},
    ]
    assert [row.where for row in read_rows(path)] == [
        f"{path}, row 1 (line 2)",
        f"{path}, row 2 (line 4)",
        f"{path}, row 3 (line 5)",
    ]


def test_text_files_are_documents_or_lines(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one\n\ntwo\r\n three"), ("b.md", "# x\n\n"), ("c.py", "x = 1\n"), ("d.txt", "")):
        (tmp_path / name).write_bytes(content.encode())
    assert [row.values["text"] for row in read_rows(tmp_path)] == ["one\n\ntwo\r\n three", "# x\n\n", "x = 1\n"]
    lines = list(read_rows(tmp_path, text_layout="line"))
    assert [row.values["text"] for row in lines] == ["one", "two", " three", "# x\n\n", "x = 1\n"]
    assert [(row.number, row.line) for row in lines[:3]] == [(1, 1), (2, 3), (3, 4)]


def test_csv_follows_rfc_4180(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,"b ""c"""\r\n1,"x\r\n\r\ny,z"\r\n\r\n,""\r\n')
    rows = list(read_rows(path))
    assert [dict(row.values) for row in rows] == [{"a": "1", 'b "c"': "x\r\n\r\ny,z"}, {"a": "", 'b "c"': ""}]
    assert [row.where for row in rows] == [f"{path}, row 1 (line 2)", f"{path}, row 2 (line 6)"]


def test_an_object_with_one_array_and_misnamed_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "tags": ["a"], "data": ROWS}))
    assert [dict(row.values) for row in read_rows(path)] == ROWS
    path.write_bytes(WRITERS["jsonl"](ROWS))
    assert [dict(row.values) for row in read_rows(path)] == ROWS


def test_parquet_values_keep_their_types(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}], "score": 0.5, "n": 3, "none": None, "ok": True}]
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet(rows))
    assert [dict(row.values) for row in read_rows(path)] == rows
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    parquet.write_table(pa.table({"text": words}), path)
    assert [row.values["text"] for row in read_rows(path)] == ["a", "b", "a"]


def test_order_is_fixed_over_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "a/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f'{{"text": "{name} {number}"}}\n' for number in range(2)))
    expected = ["a/b.jsonl 0", "a/b.jsonl 1", "a/z.jsonl 0", "a/z.jsonl 1", "b.jsonl 0", "b.jsonl 1"]
    assert [row.values["text"] for row in read_rows(tmp_path)] == expected
    assert [row.values["text"] for row in read_rows(f"{tmp_path}/**/*.jsonl")] == expected


# name, content, what the message says
BROKEN = [
    ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', r"a\.jsonl, row 2 \(line 3\), column 10: broken JSON: Expecting"),
    ("a.jsonl", b'{"text": "a"}\n["a"]\n', r"a\.jsonl, row 2: a list where an object with keys is needed"),
    ("a.jsonl", b"3\n", r"row 1: a number where an object"),
    ("a.jsonl", b'{"text": NaN}\n', r"a\.jsonl, row 1: NaN is not JSON"),
    ("a.jsonl", b'{"text": -Infinity}\n', r"row 1: -Infinity is not JSON"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", r"row 1: Exceeds the limit"),
    ("a.jsonl", b'{"text": "\\ud83d"}\n', r"row 1: a \\u escape is half of a surrogate pair"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', r"a\.jsonl, line 2: byte 11 \(0xe4\) is not UTF-8 text"),
    ("a.json", b'[{"a": 1},\n {"a": 2} {"a": 3}]', r"a\.json, row 2, line 2, column 11: broken JSON: a ','"),
    ("a.json", b'[{"a": 1},\n {"a": tru}]', r"a\.json, row 2, line 2, column 8: broken JSON: Expecting value"),
    ("a.json", b'[{"a": 1}', r"a\.json, row 1, line 1, column 10: broken JSON: a ',' or the closing"),
    ("a.json", b'[{"a": 1},', r"a\.json, row 2, line 1, column 11: broken JSON: Expecting value"),
    ("a.json", b'[{"a": "1}]', r"a\.json, row 1, line 1, column 8: broken JSON: Unterminated string"),
    ("a.json", b'[{"a": 1}] x', r"column 12: broken JSON: something follows"),
    ("a.json", b"[1]", r"a\.json, row 1: a number where an object"),
    ("a.json", b'["\\ud83d"]', r"a\.json, row 1: a text where an object"),
    ("a.json", b'[{"a": "\\ud83d"}]', r"a\.json, row 1: a \\u escape is half"),
    ("a.json", b'[{"a": "\n\xff"}]', r"a\.json, line 2: byte 1 \(0xff\) is not UTF-8"),
    ("a.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', r"exactly one array of rows; found 'a', 'b'"),
    ("a.json", b'{"text": "one row"}', r"exactly one array of rows; found none"),
    ("a.json", b'{"a": [{"x": 1}, 2]}', r"a\.json, row 2: a number where an object"),
    ("a.json", b'{"a": [{"x": 1}', r"a\.json, line 1, column 16: broken JSON"),
    ("a.json", b'"text"', r"broken JSON: an array of objects begins with"),
    ("a.csv", b"a,b\n1,2\n\n1,2,3\n", r"a\.csv, row 2 \(line 4\): 3 columns where the header has 2 \(a, b\)"),
    ("a.csv", b"a,b\n1\n", r"a\.csv, row 1 \(line 2\): 1 columns where the header has 2"),
    ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', r"a\.csv, record on line 3: broken csv: unexpected end of data"),
    ("a.csv", b'a,b\n1,"2"x\n', r"a\.csv, record on line 2: broken csv"),
    ("a.csv", b"a,,\n1,2,3\n", r"a\.csv, line 1: the header must give every column a name"),
    ("a.csv", b"a,a\n1,2\n", r"a\.csv, line 1: the header must give every column a name"),
    ("a.csv", b"a,b\n1,\xff\n", r"a\.csv, line 2: byte 3 \(0xff\) is not UTF-8"),
    ("a.tsv", b"a\tb\n1\t2\t3\n", r"a\.tsv, row 1 \(line 2\): 3 columns where the header has 2"),
    ("a.parquet", b"PAR1 and then nothing", r"a\.parquet: damaged, or not a parquet file"),
    ("a.parquet", as_parquet(ROWS)[:-40], r"a\.parquet: damaged, or not a parquet file"),
    ("a.txt", b"one\ntw\xc3(o", r"a\.txt, line 2: byte 3 \(0xc3\) is not UTF-8 text; save the file as UTF-8"),
    *((f"a.{kind}", b"", rf"a\.{kind}: is empty") for kind in ("txt", "jsonl", "json", "csv", "tsv", "py", "md")),
    ("a.parquet", b"", r"a\.parquet: damaged, or not a parquet file"),
    ("a.jsonl", b" \n\n", r"a\.jsonl: is empty"),
    ("a.json", b"[ ]", r"a\.json: is empty"),
    ("a.csv", b"a,b\n", r"a\.csv: is empty"),
    ("a.txt.gz", gzip.compress(b"", mtime=0), r"a\.txt\.gz: is empty"),
    ("a.parquet", as_parquet(ROWS[:1])[:0] + as_parquet(ROWS)[:100], r"a\.parquet: damaged"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_what_is_broken_is_said_in_one_line_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_parquet_strings_that_are_not_utf8_are_refused_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.array([b"a", b"b", b"\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": text}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 3: not UTF-8"):
        list(read_rows(path))


def test_damaged_files_are_refused_and_never_crash(tmp_path: Path) -> None:
    """R19: random damage ends in rows or in a UserError, whatever the kind of file."""
    draw = random.Random(1)
    refused = 0
    for kind, write in WRITERS.items():
        for packing, pack in PACKERS.items():
            whole = pack(write(ROWS))
            path = tmp_path / f"a.{kind}{packing}"
            for _ in range(40):
                data = bytearray(whole)
                for _ in range(draw.randint(1, 4)):
                    data[draw.randrange(len(data))] = draw.randrange(256)
                path.write_bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.3 else data)
                try:
                    for row in read_rows(path):
                        assert isinstance(row.values, dict)
                except UserError as error:
                    assert "\n" not in str(error)
                    refused += 1
    assert refused > 200


def test_reading_holds_little_of_a_large_file(tmp_path: Path) -> None:
    """50 MB of jsonl, json, csv and gzip each pass through less than 8 MB of Python memory."""
    text = "all work and no play makes Jack a dull boy " * 250
    line = json.dumps({"text": text}) + "\n"
    count = 50_000_000 // len(line)
    (tmp_path / "a.jsonl").write_text(line * count)
    (tmp_path / "a.json").write_text("[" + ",".join([line] * count) + "]")
    (tmp_path / "a.csv").write_text("text\n" + (text + "\n") * count)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()) * count)
    for name in ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        tracemalloc.start()
        assert sum(1 for _ in read_rows(tmp_path / name)) == count
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20, (name, peak)


def test_elements_of_every_length_cross_the_edges_of_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.data.json_rows._CHUNK_CHARACTERS", 3)
    rows = [{"k" * (n % 7): 'v\\"\U0001f642' * n, "n": [n, 1.5e-7, None, True, {"x": -n}]} for n in range(60)]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=indent is None))
        assert [dict(row.values) for row in read_rows(path)] == rows


HUB_PROGRAM = """
from trivium.data.locations import HubSet
from trivium.data.readers import hub_rows, read_rows
from trivium.errors import UserError

for rows in (
    hub_rows(HubSet("owner/name")),
    hub_rows(HubSet("owner/name", "default", "test")),
    hub_rows(HubSet("owner/name", None, "nothing")),
    hub_rows(HubSet("owner/code")),
    read_rows("nobody/nothing"),
):
    try:
        for row in rows:
            print(row.where, dict(row.values))
    except UserError as error:
        print(str(error)[:74])
"""


def test_hub_sets_are_read_by_datasets(tmp_path: Path) -> None:
    """The real `datasets` reads folders laid out like hub repositories, in an offline process; code is never run."""
    for name in ("name", "code"):
        folder = tmp_path / "owner" / name
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": null}\n')
        (folder / "test.jsonl").write_text('{"text": "three", "n": 3}\n')
    (tmp_path / "owner" / "code" / "code.py").write_text("print('remote code ran')\n")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", HUB_PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
    )
    assert done.stdout.splitlines() == [
        "owner/name@train, row 1 {'text': 'one', 'n': 1}",
        "owner/name@train, row 2 {'text': 'two', 'n': None}",
        "owner/name:default@test, row 1 {'text': 'three', 'n': 3}",
        "owner/name@nothing: no such file here, and not readable from the hub: Bad split: nothing."[:74],
        "owner/code@train: no such file here, and not readable from the hub: Dataset scripts"[:74],
        "nobody/nothing@train: no such file here, and not readable from the hub: Couldn't"[:74],
    ], done.stderr


def test_without_datasets_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"owner/name: hub sets need one more package: pip install 'trivium\[hub\]'"):
        list(hub_rows(HubSet("owner/name")))


def test_real_files(shared_data: Path) -> None:
    counts = {
        "alpaca/alpaca_en_demo_part1.json": None,
        "superglue/BoolQ/val.jsonl": 3270,
        "glue/SST-2/dev.tsv": 872,
        "glue/MRPC/dev.tsv": 408,
        "truthfulqa/TruthfulQA_first400.csv": 400,
        "crows-pairs/crows_pairs_anonymized_first750.csv": 750,
        "hh-rlhf/harmless-base/test_part1.jsonl.gz": None,
        "dpo-demo/dpo_en_demo_part1.json": 150,
    }
    for name, count in counts.items():
        rows = list(read_rows(shared_data / name))
        assert len(rows) == count or (count is None and len(rows) > 100), (name, len(rows))
    first = next(iter(read_rows(shared_data / "glue/MRPC/dev.tsv")))
    assert next(iter(first.values)) == "Quality"
    assert not any(isinstance(v, float) and math.isnan(v) for v in first.values.values())
