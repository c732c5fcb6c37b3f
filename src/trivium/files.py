"""Files that are either the old ones or the new ones, never half of each.

Everything Trivium writes goes through here: write beside the target, flush to disk, rename, flush the directory. POSIX
`rename` is atomic, and the two flushes make it hold after a power cut as well (Pillai et al., OSDI 2014): without the
first a file may come back empty under its new name, without the second the new name itself may be gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# Names that begin like this are ours, unfinished, and safe to delete.
TEMPORARY_PREFIX = ".tmp-"


def temporary_beside(path: Path) -> Path:
    """A fresh name in the directory of `path`, so that renaming it to `path` stays within one file system."""
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"


def sync_descriptor(descriptor: int) -> None:
    """Flush what one open file or directory holds to the disk itself."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: plain fsync stops at the drive's own cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Flush one file's bytes to the disk."""
    with path.open("rb") as file:
        sync_descriptor(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries (names) to the disk; a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents so that they are still there after a power cut."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write every byte: `os.write` may take only a part, for instance just before a disk is full."""
    while data:
        data = data[os.write(descriptor, data) :]


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, all or nothing. Creates the parent directories."""
    data = content.encode() if isinstance(content, str) else content
    make_directory(path.parent)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_directory(path.parent)


def remove_unfinished(directory: Path) -> None:
    """Delete what killed writers left in `directory` itself; for the one process that may write there."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_vacant(directory: Path) -> bool:
    """Whether nothing is there, or nothing but what a killed writer left."""
    return not directory.is_dir() or all(path.name.startswith(TEMPORARY_PREFIX) for path in directory.iterdir())


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to write into; on success it becomes `target` in one rename, on error it is removed.

    An existing `target` is replaced: it is moved aside, and deleted only after the new one is in its place. An error
    puts it back; a kill between the two renames leaves it complete beside the target (a store that must be found again
    by itself even then: `checkpoints/store.py`).
    """
    make_directory(target.parent)
    stage, old = temporary_beside(target), temporary_beside(target)
    stage.mkdir()
    try:
        yield stage
        for path in sorted(stage.rglob("*")):
            sync_directory(path) if path.is_dir() else sync_file(path)
        sync_directory(stage)
        if target.exists():
            target.rename(old)
        stage.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(stage, ignore_errors=True)
        raise
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
