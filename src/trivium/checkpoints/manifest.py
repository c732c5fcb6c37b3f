"""A sealed directory: flat files and a `manifest.json` that says what each must be, to the bit.

manifest.json: {"format": 1, "step": N, "trivium": version, "files": {name: {"sha256", "bytes"}}, "checksum"}, where
`checksum` is the SHA-256 of the same canonical JSON without that key: a bit flipped in the manifest itself is found,
and told apart from a bit flipped in a file.

Reading. A file's size must equal the manifest's before memory is allocated for it; each file is read once, and the
bytes that were hashed are the bytes that are handed out (no second read that could differ). Files are opened relative
to the open directory, so that a directory which a running trainer renames or replaces meanwhile is still read as one
thing, or is reported as `Moved`, never as a mixture. Nothing here writes into a directory that it reads.

Invariant (tests/checkpoints/test_store.py, row R4): every damage raises `Damaged` with the name of the damaged file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from trivium import __version__
from trivium.checkpoints.state import canonical_json
from trivium.files import sync_descriptor, write_all

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
CHUNK_BYTES = 4 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# Failures that say nothing about the file (see `Unreadable`).
NOT_THE_FILES_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM}


class Damaged(Exception):
    """A checkpoint that must not be used: which file, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")


class Unreadable(Exception):
    """A checkpoint that could not be read for a reason that is not its own; taking an older one would hide that."""


class Moved(Exception):
    """The directory was renamed or deleted while it was read: a trainer is at work, look again."""


@dataclass(frozen=True)
class Entry:
    """What one file must be."""

    sha256: str
    bytes: int


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> Entry:
    """Create a file from its pieces, hashed while written, and flush it to the disk."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in pieces:
            for start in range(0, len(piece), CHUNK_BYTES):
                with memoryview(piece)[start : start + CHUNK_BYTES] as chunk:
                    digest.update(chunk)
                    write_all(descriptor, chunk)
            size += len(piece)
            del piece  # its memory is free before the next piece is made
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return Entry(digest.hexdigest(), size)


def encode_manifest(step: int, files: dict[str, Entry]) -> bytes:
    """The bytes of `manifest.json`."""
    body = {"format": FORMAT, "step": step, "trivium": __version__}
    body |= {"files": {name: asdict(entry) for name, entry in files.items()}}
    return canonical_json(body | {"checksum": hashlib.sha256(canonical_json(body)).hexdigest()})


def decode_manifest(data: bytes, step: int) -> dict[str, Entry]:
    """The entries of a manifest that must be intact and belong to `step`. Raises Damaged."""
    try:
        body = json.loads(data)
        checksum = body.pop("checksum")
        intact = hashlib.sha256(canonical_json(body)).hexdigest() == checksum
        intact = intact and canonical_json(body | {"checksum": checksum}) == data
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise Damaged(MANIFEST, "does not match its own checksum")
    if body.get("format") != FORMAT:
        raise Damaged(MANIFEST, f"has format {body.get('format')}, and this Trivium ({__version__}) reads {FORMAT}")
    if body.get("step") != step:
        raise Damaged(MANIFEST, f"belongs to step {body.get('step')}")
    try:
        files = {name: Entry(**entry) for name, entry in body["files"].items()}
    except (KeyError, AttributeError, TypeError):
        raise Damaged(MANIFEST, "does not list its files as format 1 does") from None
    if not all(FILE_NAME.fullmatch(name) for name in files):
        raise Damaged(MANIFEST, "names a file outside its directory")
    return files


def read_directory(directory: Path, step: int) -> dict[str, memoryview]:
    """Every file of a sealed directory by name, complete and verified. Raises Damaged, Moved or Unreadable."""
    with _opened(directory) as descriptor:
        return {name: _read(descriptor, name, entry) for name, entry in _entries(descriptor, step).items()}


def verify_directory(directory: Path, step: int) -> None:
    """The checks of `read_directory` in constant memory."""
    with _opened(directory) as descriptor:
        for name, entry in _entries(descriptor, step).items():
            _read(descriptor, name, entry, keep=False)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """The directory's descriptor; damage found in a directory that is no longer at its path becomes Moved."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Moved from None
    except OSError as error:
        raise _read_failure(directory.name, error) from error
    try:
        yield descriptor
    except Damaged:
        try:
            still_there = os.path.samestat(directory.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            still_there = False
        if not still_there:
            raise Moved from None
        raise
    finally:
        os.close(descriptor)


def _entries(directory: int, step: int) -> dict[str, Entry]:
    with _file(directory, MANIFEST) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return decode_manifest(file.read(MAX_MANIFEST_BYTES), step)


def _read(directory: int, name: str, entry: Entry, keep: bool = True) -> memoryview:
    """One file, after comparing its size and SHA-256; without `keep` only its last chunk is in memory at the end."""
    digest = hashlib.sha256()
    with _file(directory, name) as descriptor:
        size = os.fstat(descriptor).st_size
        if size != entry.bytes:
            raise Damaged(name, f"has {size} bytes, and the manifest says {entry.bytes}")
        buffer = memoryview(bytearray(size if keep else min(size, CHUNK_BYTES)))
        at = 0
        while at < size:
            start = at if keep else 0
            count = os.readv(descriptor, [buffer[start : start + min(CHUNK_BYTES, size - at)]])
            if count == 0:
                break
            digest.update(buffer[start : start + count])
            at += count
    if digest.hexdigest() != entry.sha256:
        raise Damaged(name, "does not have the SHA-256 that the manifest says")
    return buffer


@contextmanager
def _file(directory: int, name: str) -> Iterator[int]:
    """One regular file of the open directory. Whatever fails while it is open is laid at its door."""
    descriptor = -1
    try:
        # Non-blocking, so that a named pipe put in the file's place cannot hang the reader.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged(name, "is not a regular file")
        yield descriptor
    except FileNotFoundError:
        raise Damaged(name, "is missing") from None
    except OSError as error:
        raise _read_failure(name, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read_failure(name: str, error: OSError) -> Exception:
    reason = f"could not be read: {error.strerror}"
    return Unreadable(f"{name} {reason}") if error.errno in NOT_THE_FILES_FAULT else Damaged(name, reason)
