"""Files are the old ones or the new ones, never half of each."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trivium import files
from trivium.files import make_directory, sha256_of_file, staged_directory, write_all, write_atomically


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_atomically_creates_parents_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    write_atomically(target, "old ä")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new" and names(target.parent) == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond 1000 bytes: a really failing disk, in a process of its own."""
    target = tmp_path / "file.bin"
    write_atomically(target, bytes(500))
    program = (
        "import resource, sys; from pathlib import Path; from trivium.files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(Path(sys.argv[1]), bytes(2000))"
    )
    done = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert target.read_bytes() == bytes(500) and names(tmp_path) == ["file.bin"]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "taken", b"x")
    assert names(tmp_path) == ["taken"]


def test_staged_directory_appears_whole(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "new" / "model") as stage:
        (stage / "deep").mkdir()
        (stage / "deep" / "weights").write_bytes(b"w")
        assert not (tmp_path / "new" / "model").exists()
    assert (tmp_path / "new" / "model" / "deep" / "weights").read_bytes() == b"w"
    assert names(tmp_path / "new") == ["model"]


def test_staged_directory_replaces_wholly_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with staged_directory(target) as stage:
        (stage / "one").write_text("1")
    with pytest.raises(RuntimeError, match="half way"), staged_directory(target) as stage:
        (stage / "two").write_text("2")
        raise RuntimeError("half way")
    assert names(target) == ["one"] and names(tmp_path) == ["model"]
    with staged_directory(target) as stage:
        (stage / "two").write_text("2")
    assert names(target) == ["two"] and names(tmp_path) == ["model"]


def test_staged_directory_puts_the_old_one_back_when_the_last_rename_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with staged_directory(target) as stage:
        (stage / "one").write_text("1")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self.name.startswith(".tmp-") and (self / "two").exists():
            raise OSError(errno.EIO, "seeded failure")
        return rename(self, to)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="seeded"):
        patch.setattr(Path, "rename", failing)
        with staged_directory(target) as stage:
            (stage / "two").write_text("2")
    assert names(target) == ["one"] and names(tmp_path) == ["model"]


def test_make_directory_flushes_the_parent_of_each_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", flushed.append)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and flushed == [tmp_path, tmp_path / "a"]


def test_write_all_goes_on_after_a_short_write() -> None:
    """A pipe takes at most its capacity at a time."""
    reading, writing = os.pipe()
    os.set_blocking(writing, True)
    data = os.urandom(300_000)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"],
        stdin=reading,
        stdout=subprocess.PIPE,
    )
    os.close(reading)
    write_all(writing, memoryview(data))
    os.close(writing)
    assert child.communicate()[0] == data


def test_sha256_of_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
