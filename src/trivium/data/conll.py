"""Sentences as words with their tags: files in the columns of CoNLL, and rows of {tokens, tags}.

A line of columns holds a word first and its tag last; blank lines part sentences, and lines that begin with -DOCSTART-
part documents (Tjong Kim Sang and De Meulder, 2003). Columns are parted by tabs, where a line has any, else by white
space, and are equally many in all lines of a file. In rows, tags are texts, or numbers of the classes that a recipe
names. Tags of entities become BIO, however they were written. Invariant its test checks: whatever is neither a word
with its tag nor a break between sentences is refused with its file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trivium.data.locations import kind_of
from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.streams import COMPRESSIONS, read_lines
from trivium.errors import UserError

# How files of columns end; each may be followed by .gz or .zst.
ENDINGS = (".conll", ".bio", ".iob", ".txt")
BREAK = "-DOCSTART-"


@dataclass(frozen=True)
class Sentence:
    """Words, and what each of them is."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | tuple[int, ...]
    """As the file has them: all texts, or all numbers of classes."""
    where: str
    """File and row."""

    @property
    def text(self) -> str:
        """The words, a blank between each two."""
        return " ".join(self.words)


def tagged_rows(path: str) -> Iterator[Row]:
    """The rows of files of columns (each sentence is {tokens, tags}), and of all that `read_rows` reads.

    UserError for a line that cannot be read, and for a folder that holds files of both kinds.
    """
    files = _columns_under(path)
    if not files:
        yield from read_rows(path)
        return
    empty = True
    for file in files:
        for row in column_rows(file):
            empty = False
            yield row
    if empty:
        raise UserError(f"{path}: holds no word with a tag")


def column_rows(path: Path) -> Iterator[Row]:
    """The sentences of one file of columns."""
    words: list[str] = []
    tags: list[str] = []
    number, began, width = 0, 0, 0
    for line_number, line in read_lines(path):
        cells = _cells(line)
        if not cells or cells[0] == BREAK:
            if words:
                number += 1
                yield Row({"tokens": words, "tags": tags}, str(path), number, began)
                words, tags = [], []
            continue
        width = width or len(cells)
        if len(cells) < 2 or len(cells) != width or not all(cells):
            raise UserError(f"{path}, line {line_number}: {_mistake(cells, width)}")
        began = began if words else line_number
        words.append(cells[0])
        tags.append(cells[-1])
    if words:
        yield Row({"tokens": words, "tags": tags}, str(path), number + 1, began)


def sentences_of(row: Row) -> Iterator[Sentence]:
    """The one sentence of a row. UserError, with file and row, where words and tags are not equally many."""
    lists = []
    for key in ("tokens", "tags"):
        value = row.values.get(key)
        if not isinstance(value, list) or not value:
            keys = ", ".join(map(repr, row.values)) or "(none)"
            raise UserError(
                f"{row.where}: {key!r} must be a list that is not empty (its keys: {keys}); columns: {{{key}: NAME}} "
                "names another key"
            )
        lists.append(value)
    words, tags = lists
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{row.where}: all 'tokens' must be texts")
    whole = all(isinstance(tag, int) and not isinstance(tag, bool) for tag in tags)
    if not whole and not all(isinstance(tag, str) and tag for tag in tags):
        raise UserError(f"{row.where}: 'tags' must all be texts, or all be numbers of classes")
    if len(words) != len(tags):
        raise UserError(f"{row.where}: {len(words)} words and {len(tags)} tags; each word has one")
    yield Sentence(tuple(words), tuple(tags), row.where)


def _cells(line: str) -> list[str]:
    """The columns of a line; none for a blank one."""
    if not line.strip():
        return []
    return [cell.strip() for cell in line.rstrip("\r\n").split("\t")] if "\t" in line else line.split()


def _mistake(cells: list[str], width: int) -> str:
    if len(cells) < 2:
        return f"holds only {cells[0]!r}; a line has a word first and its tag last, and blank lines part sentences"
    if len(cells) != width:
        return f"{len(cells)} columns, where the file's first line has {width}"
    return "a column is empty"


def _columns_under(path: str) -> list[Path]:
    """The files of columns that a path names; none: `read_rows` is to find out what it names."""
    target = Path(path).expanduser()
    if target.is_file():
        return [target] if _is_columns(target) else []
    if target.is_dir():
        inside = sorted(file for file in target.rglob("*") if file.is_file())
        columns = [file for file in inside if _is_columns(file)]
        others = [file for file in inside if kind_of(file) not in (None, "text", "document")]
        if columns and others:
            raise UserError(f"{path}: holds columns ({columns[0].name}) and rows ({others[0].name}): name one of them")
        return columns
    if any(mark in path for mark in "*?["):
        matches = sorted(file for file in Path(target.anchor).glob(str(target.relative_to(target.anchor))))
        return [file for file in matches if file.is_file() and _is_columns(file)]
    return []


def _is_columns(path: Path) -> bool:
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return name.endswith(ENDINGS)
