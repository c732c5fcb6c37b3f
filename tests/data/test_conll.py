"""Columns and rows of tagged words: read as they stand, refused with file and line where they are malformed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from trivium.data.conll import Sentence, sentences_of, tagged_rows
from trivium.errors import UserError

COLUMNS = """-DOCSTART- -X- O O

Mira NNP I-NP B-PER
Stone NNP I-NP I-PER
feeds VBZ I-VP O
# SYM O O

-DOCSTART- -X- O O

Pim NNP I-NP B-PER"""
SENTENCES = [
    (("Mira", "Stone", "feeds", "#"), ("B-PER", "I-PER", "O", "O")),
    (("Pim",), ("B-PER",)),
]


def read(path: Path | str) -> list[tuple[tuple, tuple]]:
    return [(each.words, each.tags) for row in tagged_rows(str(path)) for each in sentences_of(row)]


def test_columns_by_blanks_and_by_tabs_and_packed(tmp_path: Path) -> None:
    (tmp_path / "blanks.conll").write_text(COLUMNS + "\n")
    (tmp_path / "tabs.txt").write_text(COLUMNS.replace(" ", "\t").replace("\n", "\r\n"))
    (tmp_path / "packed.bio.gz").write_bytes(gzip.compress(COLUMNS.encode()))
    for name in ("blanks.conll", "tabs.txt", "packed.bio.gz"):
        assert read(tmp_path / name) == SENTENCES, name
    assert read(tmp_path) == SENTENCES * 3
    assert read(f"{tmp_path}/*.conll") == SENTENCES
    rows = list(tagged_rows(str(tmp_path / "blanks.conll")))
    assert [row.where for row in rows] == [
        f"{tmp_path}/blanks.conll, row 1 (line 3)",
        f"{tmp_path}/blanks.conll, row 2 (line 10)",
    ]


def test_a_word_may_hold_blanks_where_tabs_part_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "spaces.conll"
    path.write_text("3 000\tO\nMira\tB-PER\n")
    assert read(path) == [(("3 000", "Mira"), ("O", "B-PER"))]


def test_rows_of_texts_and_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"tokens": ["Mira", "eats"], "tags": ["B-PER", "O"]})
        + "\n"
        + json.dumps({"tokens": ["Pim"], "tags": [1]})
    )
    assert read(path) == [(("Mira", "eats"), ("B-PER", "O")), (("Pim",), (1,))]
    assert Sentence(("a", "b"), ("O", "O"), "").text == "a b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mira B-PER\nStone\n", "line 2: holds only 'Stone'"),
        ("Mira NNP B-PER\nStone I-PER\n", "line 2: 2 columns, where the file's first line has 3"),
        ("Mira\tB-PER\nStone\t\n", "line 2: a column is empty"),
        ("\n\n-DOCSTART- O\n", "holds no word with a tag"),
    ],
)
def test_malformed_columns_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.conll"
    path.write_text(text)
    with pytest.raises(UserError, match=f"bad.conll.*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        (
            {"tokens": ["a"], "ner": ["O"]},
            r"'tags' must be a list .*its keys: 'tokens', 'ner'.*columns: \{tags: NAME\}",
        ),
        ({"tokens": ["a"], "tags": [True]}, "must all be texts, or all be numbers"),
        ({"tokens": ["a", "b"], "tags": [1, "O"]}, "must all be texts, or all be numbers"),
        ({"tokens": [1], "tags": ["O"]}, "all 'tokens' must be texts"),
        ({"tokens": [], "tags": []}, "not empty"),
    ],
)
def test_malformed_rows_are_refused_with_their_place(tmp_path: Path, values: dict, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"rows.jsonl, row 1: .*{message}"):
        read(path)


def test_a_folder_of_both_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("a O\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"holds columns \(a.conll\) and rows \(b.jsonl\)"):
        read(tmp_path)
