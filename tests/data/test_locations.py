from __future__ import annotations

import os
from pathlib import Path

import pytest

from trivium.data.locations import HubSet, kind_of, locate
from trivium.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ["train.jsonl", "b/two.txt", "b/one.txt", "b.txt", "B/x.csv.gz", "b/deep/er.parquet", "junk.bin"]
    for name in [*names, ".hidden.txt", ".git/config.txt", "b/Z.TXT"]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def names(found: object, folder: Path) -> list[str]:
    assert isinstance(found, list)
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_give_known_files_in_the_order_of_their_names(folder: Path) -> None:
    expected = ["B/x.csv.gz", "b.txt", "b/Z.TXT", "b/deep/er.parquet", "b/one.txt", "b/two.txt", "train.jsonl"]
    expected.sort(key=lambda name: name.split("/"))
    assert names(locate(folder), folder) == expected


def test_the_order_does_not_depend_on_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = locate(folder)
    walk = os.walk

    def reversed_walk(top: object, **options: object):  # type: ignore[no-untyped-def]
        for parent, folders, files in walk(top, **options):  # type: ignore[call-overload]
            folders.reverse()
            yield parent, folders, files[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert locate(folder) == usual


def test_globs_are_sorted_and_may_be_recursive(folder: Path) -> None:
    assert names(locate(folder / "b" / "*.txt"), folder) == ["b/one.txt", "b/two.txt"]
    assert names(locate(f"{folder}/**/*.txt"), folder) == ["b/one.txt", "b/two.txt", "b.txt"]
    assert locate("data/b/[o]*.txt") == [Path("data/b/one.txt")]
    with pytest.raises(UserError, match="no file matches"):
        locate("data/*.nothing")


def test_what_exists_wins_over_marks_and_hub_ids(folder: Path) -> None:
    odd = folder / "[1].txt"
    odd.write_text("text")
    assert locate(odd) == [odd]
    assert locate("data/b") == [Path("data/b/Z.TXT"), Path("data/b/deep/er.parquet"), *locate("data/b/*.txt")]


def test_hub_ids() -> None:
    assert locate("owner/name") == HubSet("owner/name", None, "train")
    assert locate("owner/na.me-2:config") == HubSet("owner/na.me-2", "config", "train")
    assert locate("owner/name:config@test[:10%]".replace("[:10%]", "")) == HubSet("owner/name", "config", "test")
    assert locate("owner/name@validation") == HubSet("owner/name", None, "validation")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data/trian.jsonl", r"data/trian\.jsonl: no such file or folder; did you mean data/train\.jsonl\?"),
        ("dta/train.jsonl", r"dta/train\.jsonl: no such file or folder; did you mean data\?"),
        ("data/b/zzzzzz.txt", r"no such file or folder \(there is no 'zzzzzz.txt' in .*data/b\)"),
        ("data/junk", r"no such file or folder; did you mean data/junk\.bin\?"),
        ("data/junk.bin", r"data/junk\.bin: unknown kind of file; known: \.txt "),
        ("data/*.bin", r"data/junk\.bin: unknown kind of file"),
        ("/nowhere/at/all.txt", r"no such file or folder \(there is no 'nowhere' in /\)"),
        ("/dev/null", r"/dev/null: neither a file nor a folder"),
    ],
)
def test_what_is_not_there_is_said_with_a_cure(folder: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        locate(path)
    assert "\n" not in str(caught.value)


def test_unknown_extensions_name_the_nearest(folder: Path) -> None:
    (folder / "a.jsnl.gz").write_text("")
    with pytest.raises(UserError, match=r"did you mean \.jsonl\?"):
        locate(folder / "a.jsnl.gz")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no file of a known kind"):
        locate(folder / "empty")


def test_kinds() -> None:
    kinds = {"a.txt": "text", "a.MD": "document", "a.jsonl.gz": "jsonl", "a.JSON.ZST": "json", "a.txt.gz.gz": None}
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
    assert kind_of(Path("gz")) is None and kind_of(Path(".gz")) is None
