"""Rows from files of every accepted kind, and from the hub: `read_rows(path)`.

One generator for each kind, all lazy and bounded: txt, md, py (a file is a document), jsonl, json, csv (RFC 4180), tsv
(no quoting), parquet (a few rows at a time), each also inside .gz or .zst. Values are never guessed at: a csv cell that
reads `NaN` or `007` stays that text.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from trivium.data.json_rows import json_rows, jsonl_rows
from trivium.data.locations import HubSet, kind_of, locate
from trivium.data.row import Row, place
from trivium.data.settings import TextLayout
from trivium.data.streams import Expansion, compression_of, open_bytes, read_document, read_lines
from trivium.errors import UserError

# The csv module holds a cell at four bytes a character and doubles its buffer as it grows.
MAX_CELL_CHARACTERS = 4 << 20

_PARQUET_ROWS_AT_ONCE = 64


def read_rows(path: str | Path, *, text_layout: TextLayout = "file") -> Iterator[Row]:
    """The rows of a file, folder, glob or hub set, in fixed order.

    `text_layout` says whether a .txt file is one document or holds one on each line. What `path` names is found at the
    call; rows are read as they are asked for. Raises a UserError for anything that cannot be read as rows, and when
    there are none at all.
    """
    found = locate(path)
    rows = hub_rows(found) if isinstance(found, HubSet) else _rows_of_files(found, text_layout)
    return _at_least_one(rows, path)


def _at_least_one(rows: Iterable[Row], path: str | Path) -> Iterator[Row]:
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except MemoryError as error:
        raise UserError(f"{path}: a row needs more memory than there is") from error
    if empty:
        raise UserError(f"{path}: is empty, it holds no row")


def _rows_of_files(files: Sequence[Path], text_layout: TextLayout) -> Iterator[Row]:
    for file in files:
        kind = kind_of(file)
        if kind == "text" and text_layout == "line":
            yield from text_line_rows(file)
        elif kind in ("text", "document"):
            yield from document_rows(file)
        else:
            yield from _READERS[str(kind)](file)


def document_rows(path: Path) -> Iterator[Row]:
    """A whole file as one text (none when it is empty)."""
    text = read_document(path)
    if text:
        yield Row({"text": text}, str(path), 1)


def text_line_rows(path: Path) -> Iterator[Row]:
    """Each line as one text, without its line end; blank lines are passed over."""
    number = 0
    for line_number, line in read_lines(path):
        if line.strip():
            number += 1
            yield Row({"text": line.rstrip("\r\n")}, str(path), number, line_number)


def csv_rows(path: Path) -> Iterator[Row]:
    """Comma-separated records under a header; cells may be quoted and hold line ends (RFC 4180)."""
    return _table_rows(path, _csv_records(path))


def tsv_rows(path: Path) -> Iterator[Row]:
    """Tab-separated lines under a header; a quotation mark is an ordinary character."""
    lines = ((number, line.rstrip("\r\n")) for number, line in read_lines(path))
    return _table_rows(path, ((number, line.split("\t")) for number, line in lines if line))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of each record that is not blank."""
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, record on line {line}: broken csv: {error}") from error
        if record:
            yield line, record


def _table_rows(path: Path, records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    """Records under the names of the first one; each must have as many cells."""
    _, names = next(records, (0, []))
    if len(set(names)) != len(names):
        raise UserError(f"{path}, line 1: the header must give every column a name of its own; it is {names}")
    for number, (line, cells) in enumerate(records, 1):
        if len(cells) != len(names):
            raise UserError(
                f"{place(path, number, line)}: {len(cells)} columns where the header has {len(names)} "
                f"({', '.join(names)})"
            )
        yield Row(dict(zip(names, cells, strict=True)), str(path), number, line)


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a parquet file, a few at a time; what they unpack to is counted."""
    if compression_of(path) is None:
        with path.open("rb") as file:
            yield from _parquet_rows(path, file)
        return
    with tempfile.TemporaryFile() as unpacked, open_bytes(path) as packed:
        shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield from _parquet_rows(path, unpacked)


def _parquet_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    declared, read = Expansion(path), Expansion(path)
    number = 0
    try:
        table = parquet.ParquetFile(file)
        for group in range(table.num_row_groups):
            declared.count(table.metadata.row_group(group).total_byte_size)
        for packed in table.iter_batches(_PARQUET_ROWS_AT_ONCE, use_threads=False):
            # A dictionary column counts with the values it stands for.
            columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in packed.columns]
            batch = pa.RecordBatch.from_arrays(columns, names=packed.schema.names)
            read.count(batch.nbytes)
            for values in _values_of(batch, path, number):
                number += 1
                yield Row(values, str(path), number)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged, or not a parquet file ({' '.join(str(error).split())})") from error


def _values_of(batch: Any, path: Path, rows_before: int) -> list[dict[str, Any]]:
    """A record batch as dicts; strings that are not UTF-8 are refused with their row."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(f"{place(path, rows_before + index + 1)}: not UTF-8 text ({error})") from error
        raise


def hub_rows(hub: HubSet) -> Iterator[Row]:
    """The rows of a set on the hub, streamed; only its data files are read, never code of its repository."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{hub.name}: hub sets need one more package: pip install 'trivium[hub]'") from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise UserError(f"{hub.name}: this version of `datasets` can run code from the hub; pip install 'datasets>=4'")
    name = hub.name + (f":{hub.config}" if hub.config else "") + f"@{hub.split}"
    number = 0
    try:
        for values in datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True):
            number += 1
            yield Row(dict(values), name, number)
    except Exception as error:  # the hub client raises errors of many libraries
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{name}: no such file here, and not readable from the hub: {reason}") from error


_READERS = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
    "tsv": tsv_rows,
    "parquet": parquet_rows,
}
