"""Files that are either the old ones or the new ones, never half of each.

Everything Trivium writes goes through here: write beside the target, flush to disk, rename, flush the directory. POSIX
`rename` is atomic, and the two `fsync`s make it hold after a power cut as well (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# Names that begin like this are ours, unfinished, and safe to delete.
TEMPORARY_PREFIX = ".tmp-"


def sync_file(path: Path) -> None:
    """Flush one file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries (names) to the disk; a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, all or nothing. Creates the parent directories."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory to write into; on success it becomes `target` in one rename, on error it is removed.

    An existing `target` is replaced: it is moved aside first and deleted after, so that a crash leaves one of the two
    complete (for stores that must survive a crash between the two renames see `checkpoints/store.py`).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.parent / f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex[:8]}"
    stage.mkdir()
    try:
        yield stage
        for path in sorted(stage.rglob("*")):
            sync_directory(path) if path.is_dir() else sync_file(path)
        sync_directory(stage)
        old: Path | None = None
        if target.exists():
            old = target.parent / f"{TEMPORARY_PREFIX}{target.name}-old-{uuid.uuid4().hex[:8]}"
            target.rename(old)
        stage.rename(target)
        sync_directory(target.parent)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
