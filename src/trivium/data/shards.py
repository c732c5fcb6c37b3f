"""Documents tokenized once into memory-mapped files: build them, open them, notice damage.

A folder of shards holds one stream of token ids, each document closed by the end-of-text id: `tokens-00000.bin`, ...
(little-endian uint16, or uint32 for vocabularies over 65,536; all but the last of equal length, so that a position is
found by division), `documents.bin` (little-endian int64: where each document starts, and the end of the last) and
`index.json` (counts, a fingerprint of everything the ids depend on, and size and SHA-256 of each file).

Building holds a few MB at a time, happens in a folder beside the target and ends in one rename, under a lock: of
several processes that ask for the same shards one builds and the others wait for it. The invariants its test checks:
decoding gives back every document byte for byte; the same fingerprint is never built twice, another always is; a
damaged file is named.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.text_encoder import TextEncoder, closing_id
from trivium.errors import UserError
from trivium.files import TEMPORARY_PREFIX, sha256_of_file, staged_directory
from trivium.progress import SILENT, Progress

FORMAT = 2
INDEX_NAME = "index.json"
DOCUMENTS_NAME = "documents.bin"
# 128 Mi ids a shard (256 MB as uint16): few files, each small enough to copy about.
SHARD_TOKENS = 128 << 20

_MAX_INDEX_BYTES = 16 << 20
# Text encoded at once, in characters; the token objects of a batch take perhaps a hundred times this in bytes.
_BATCH_CHARACTERS = 1 << 19
# A longer document is encoded in pieces, in parallel, cut after a single line end between two visible characters, if
# the tokenizer splits there anyway (byte-level and word-level ones do; the probes show those that add a space instead).
_PIECE_CHARACTERS = 1 << 13
_PIECE_END = re.compile(r"(?<=\S)\n(?=\S)")
_PROBES = [(first + "\n", second) for first in "a1.é" for second in "a1.é"]


@dataclass(frozen=True)
class ShardIndex:
    """What `index.json` holds."""

    fingerprint: str
    """Hash of everything the ids depend on: sources, tokenizer, settings, this format."""
    dtype: str
    """`uint16` or `uint32`."""
    vocab_size: int
    start_id: int
    """What stands before a document when it is read: the tokenizer's beginning-of-text id, else the end-of-text id."""
    eos_id: int
    shard_tokens: int
    """Ids in every shard but the last."""
    num_documents: int
    num_empty_documents: int
    """Documents without text, left out and not counted in `num_documents`."""
    num_tokens: int
    """End-of-text ids included."""
    num_bytes: int
    """UTF-8 bytes of the documents' text."""
    made_from: dict[str, Any]
    """The sources and settings behind the fingerprint, for people to read."""
    files: dict[str, dict[str, Any]]
    """Name to {"bytes", "sha256"}."""


@dataclass(frozen=True)
class Shards:
    """Opened shards. Nothing is read before it is asked for."""

    directory: Path
    index: ShardIndex

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return self.index.num_documents

    @property
    def num_tokens(self) -> int:
        """How many ids there are, end-of-text ids included."""
        return self.index.num_tokens

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return self.index.num_bytes

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(documents + 1): the position at which each document starts, and the end of the last."""
        return np.memmap(self.directory / DOCUMENTS_NAME, dtype="<i8", mode="r")

    @cached_property
    def _maps(self) -> list[NDArray[Any]]:
        dtype = np.dtype(self.index.dtype).newbyteorder("<")
        names = sorted(name for name in self.index.files if name.startswith("tokens-"))
        return [np.memmap(self.directory / name, dtype=dtype, mode="r") for name in names]

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start) int64: the ids at these positions of the stream."""
        size = self.index.shard_tokens
        parts = []
        while start < stop:
            shard, first = divmod(start, size)
            part = self._maps[shard][first : first + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def document(self, number: int) -> NDArray[np.int64]:
        """The ids of one document, its end-of-text id last."""
        return self.tokens(int(self.offsets[number]), int(self.offsets[number + 1]))


def fingerprint_of(made_from: Mapping[str, Any], tokenizer: TextEncoder) -> str:
    """Hash of everything the ids depend on."""
    marks = [tokenizer.bos_id, closing_id(tokenizer)]  # which ids they are is written beside the tokenizer, not in it
    parts = {"format": FORMAT, "made_from": made_from, "tokenizer": tokenizer.fingerprint, "marks": marks}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_shards(
    documents: Iterable[str],
    tokenizer: TextEncoder,
    directory: Path,
    *,
    made_from: Mapping[str, Any],
    verify: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    description: str = "documents",
    progress: Progress = SILENT,
) -> Shards:
    """The shards of `documents` in `directory`: those that are there if they are the right ones, else new ones.

    `made_from` says what the documents are (names, hashes, settings; plain JSON values). `documents` is not touched
    when nothing has to be built. `verify` re-reads the shards that are there and compares their SHA-256.
    """
    eos_id = closing_id(tokenizer)
    if eos_id is None:
        raise UserError(
            "the tokenizer has neither an end-of-text token nor a separator, one of which must close every document; "
            "train one with it"
        )
    made_from = {**made_from, "shard_tokens": shard_tokens}
    fingerprint = fingerprint_of(made_from, tokenizer)
    with _locked(directory):
        try:
            shards = open_shards(directory, verify=verify)
            if shards.index.fingerprint == fingerprint:
                return shards
        except UserError as error:
            if directory.exists():
                progress.note(f"{error} (done now)")
        _remove_unfinished(directory)
        progress.start(f"Tokenizing {description}", unit="tokens")
        try:
            with staged_directory(directory) as stage:
                writer = _ShardWriter(stage, tokenizer, eos_id, shard_tokens, progress)
                writer.write(documents)
                index = writer.index(fingerprint, made_from)
                (stage / INDEX_NAME).write_bytes(_index_bytes(asdict(index)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{directory}: {error.strerror}; free some, or set another cache_directory") from error
        finally:
            progress.finish()
        return open_shards(directory)


def open_shards(directory: Path, *, verify: bool = False) -> Shards:
    """Shards built before. Every file's size is checked, with `verify` its SHA-256 as well; a UserError names the
    file that is missing or damaged."""
    path = directory / INDEX_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_INDEX_BYTES)
        values = json.loads(content)
        values.pop("sha256")
        if content != _index_bytes(values):
            raise ValueError("its SHA-256 changed")
        index = ShardIndex(**values)
    except OSError as error:
        raise UserError(f"{directory}: holds no token shards ({INDEX_NAME}: {error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; delete {directory} to build it again") from error
    for name, stated in index.files.items():
        file_path = directory / name
        if not file_path.is_file() or file_path.stat().st_size != stated["bytes"]:
            raise UserError(f"{file_path}: missing or of the wrong size; delete {directory} to build it again")
        if verify and sha256_of_file(file_path) != stated["sha256"]:
            raise UserError(f"{file_path}: damaged (its SHA-256 changed); delete {directory} to build it again")
    return Shards(directory, index)


def _index_bytes(values: Mapping[str, Any]) -> bytes:
    """The index file of these values, with their own SHA-256 in it."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**values, "sha256": digest}, indent=1) + "\n").encode()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory` (a file beside it). The system lets go of it when the process ends, however."""
    path = directory.parent / f".{directory.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written to ({error.strerror}); set another cache_directory"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unfinished(directory: Path) -> None:
    """Delete what killed builders of `directory` left; with the lock held there is no living one."""
    for path in directory.parent.glob(f"{TEMPORARY_PREFIX}{glob.escape(directory.name)}-*"):
        shutil.rmtree(path, ignore_errors=True)


class _HashedFile:
    """A file written once, front to back, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, array: NDArray[Any]) -> None:
        data = array.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


class _ShardWriter:
    """Encodes documents batch by batch and writes the ids as they come."""

    def __init__(
        self, folder: Path, tokenizer: TextEncoder, eos_id: int, shard_tokens: int, progress: Progress
    ) -> None:
        self._folder, self._tokenizer, self._eos_id = folder, tokenizer, eos_id
        self._shard_tokens, self._progress = shard_tokens, progress
        self._may_cut = _splits_at_line_ends(tokenizer)
        self._dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._offsets = _HashedFile(folder / DOCUMENTS_NAME)
        self._offsets.write(np.zeros(1, "<i8"))
        self._shard: _HashedFile | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._num_documents = self._num_empty = self._num_tokens = self._num_bytes = 0

    def write(self, documents: Iterable[str]) -> None:
        """Encode and write all documents; those without a visible character are counted only."""
        batch: list[tuple[str, bool]] = []
        characters = 0
        for document in documents:
            if not document or document.isspace():
                self._num_empty += 1
                continue
            self._num_documents += 1
            self._num_bytes += len(document.encode("utf-8"))
            for piece, is_last in _pieces(document) if self._may_cut else [(document, True)]:
                batch.append((piece, is_last))
                characters += len(piece)
                if characters >= _BATCH_CHARACTERS:
                    self._encode(batch)
                    batch, characters = [], 0
        self._encode(batch)

    def index(self, fingerprint: str, made_from: dict[str, Any]) -> ShardIndex:
        """Close the files and sum up what was written."""
        self._close_shard()
        self._files[DOCUMENTS_NAME] = self._offsets.close()
        return ShardIndex(
            fingerprint=fingerprint,
            dtype=self._dtype,
            vocab_size=self._tokenizer.vocab_size,
            start_id=self._eos_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id,
            eos_id=self._eos_id,
            shard_tokens=self._shard_tokens,
            num_documents=self._num_documents,
            num_empty_documents=self._num_empty,
            num_tokens=self._num_tokens,
            num_bytes=self._num_bytes,
            made_from=made_from,
            files=self._files,
        )

    def _encode(self, batch: list[tuple[str, bool]]) -> None:
        """Write the ids of pieces, and the end-of-text id after the last piece of each document."""
        encoded = self._tokenizer.encode_batch([piece for piece, _ in batch])
        ends = []
        position = self._num_tokens
        for piece_ids, (_, is_last) in zip(encoded, batch, strict=True):
            if is_last:
                piece_ids.append(self._eos_id)
                ends.append(position + len(piece_ids))
            position += len(piece_ids)
        ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int64, position - self._num_tokens)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._tokenizer.vocab_size:
            raise ValueError("the tokenizer gave an id outside its vocabulary")
        self._offsets.write(np.array(ends, "<i8"))
        self._append(ids.astype(np.dtype(self._dtype).newbyteorder("<")))
        self._progress.advance(len(ids))

    def _append(self, ids: NDArray[Any]) -> None:
        """Write ids, beginning a new shard wherever one is full."""
        while len(ids):
            number, filled = divmod(self._num_tokens, self._shard_tokens)
            if filled == 0:
                self._close_shard()
                self._shard = _HashedFile(self._folder / f"tokens-{number:05d}.bin")
            assert self._shard is not None
            part = ids[: self._shard_tokens - filled]
            self._shard.write(part)
            self._num_tokens += len(part)
            ids = ids[len(part) :]

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._files[self._shard.path.name] = self._shard.close()
            self._shard = None


def _splits_at_line_ends(tokenizer: TextEncoder) -> bool:
    """Whether the ids of a text are those of its lines, one after the other."""
    whole = tokenizer.encode_batch([first + second for first, second in _PROBES])
    firsts = tokenizer.encode_batch([first for first, _ in _PROBES])
    seconds = tokenizer.encode_batch([second for _, second in _PROBES])
    return whole == [first + second for first, second in zip(firsts, seconds, strict=True)]


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """(piece, whether it is the last) of a document, in order."""
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        cut = _PIECE_END.search(document, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        yield document[start : cut.end()], False
        start = cut.end()
    yield document[start:], True
