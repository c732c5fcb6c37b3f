"""Stores with one bug each, as they have been seen in the wild: every one must turn a check red.

A mutant is a function that, called in the process that is to be broken, breaks it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trivium.checkpoints import manifest
from trivium.checkpoints.store import CheckpointStore
from trivium.files import sync_directory

publish, write, fsync = CheckpointStore._publish, CheckpointStore._write, os.fsync


def rotate_first() -> None:
    """The old checkpoints are retired before the new one is in its place."""

    def broken(self: CheckpointStore, temporary: Path, target: Path) -> None:
        self._retire([path for path in self.directory.glob("step-*") if path != target])
        publish(self, temporary, target)

    CheckpointStore._publish = broken


def manifest_last() -> None:
    """The directory gets its name before its manifest."""
    held: list[bytes] = []

    def broken_write(self: CheckpointStore, temporary: Path, *arguments: Any) -> None:
        write(self, temporary, *arguments)
        held.append((temporary / manifest.MANIFEST).read_bytes())
        (temporary / manifest.MANIFEST).unlink()

    def broken_publish(self: CheckpointStore, temporary: Path, target: Path) -> None:
        publish(self, temporary, target)
        manifest.write_file(target / manifest.MANIFEST, [held.pop()])

    CheckpointStore._write, CheckpointStore._publish = broken_write, broken_publish


def delete_in_place() -> None:
    """Old checkpoints are deleted file by file under their own names."""
    CheckpointStore._retire = lambda self, paths: [shutil.rmtree(path) for path in paths]


def replace_by_deleting() -> None:
    """A step that is saved again is deleted first."""

    def broken(self: CheckpointStore, temporary: Path, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)
        publish(self, temporary, target)

    CheckpointStore._publish = broken


def write_in_place() -> None:
    """No temporary directory: the files are written under the final name."""

    def broken(self: CheckpointStore, temporary: Path, *arguments: Any) -> None:
        write(self, temporary.with_name(temporary.name.removeprefix(".tmp-").rsplit("-", 1)[0]), *arguments)

    CheckpointStore._write = broken
    CheckpointStore._publish = lambda self, temporary, target: sync_directory(self.directory)


def never_sync(wanted: Callable[[int], bool]) -> Callable[[], None]:
    """`os.fsync` does nothing for some descriptors."""

    def mutant() -> None:
        os.fsync = lambda descriptor: None if wanted(descriptor) else fsync(descriptor)

    return mutant


def is_file(descriptor: int) -> bool:
    """A regular file."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def is_checkpoint(descriptor: int) -> bool:
    """A directory with files in it, not the store with directories in it."""
    return not is_file(descriptor) and any("." in name[1:] for name in os.listdir(descriptor))


MUTANTS = {
    "rotate_first": rotate_first,
    "manifest_last": manifest_last,
    "delete_in_place": delete_in_place,
    "replace_by_deleting": replace_by_deleting,
    "write_in_place": write_in_place,
    "no_file_sync": never_sync(is_file),
    "no_checkpoint_directory_sync": never_sync(is_checkpoint),
    "no_store_directory_sync": never_sync(lambda descriptor: not is_file(descriptor) and not is_checkpoint(descriptor)),
    "no_space_check": lambda: setattr(CheckpointStore, "_require_space", lambda self, size, copies: None),
}
