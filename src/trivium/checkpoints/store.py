"""The run store: checkpoints of which, whatever happens and whenever, a good one can be loaded.

A store is a directory of `step-N/` directories; each holds `<stem>.safetensors` files, `state.json` and
`manifest.json` with the size and SHA-256 of every other file. Nothing is ever pickled.

Saving step N:
 1. What can be refused is refused before a byte is written: states, tensors, free space. Our own leftovers are removed.
 2. The files are written into `.tmp-step-N-…`, hashed on the way, each flushed to the disk.
 3. `manifest.json` is written there and flushed; then the directory's own entries are flushed.
 4. If `step-N` exists already, it is renamed to `step-N.old` (which readers accept too), and the parent is flushed.
 5. The temporary directory is renamed to `step-N`, and the parent is flushed. From here on the save has happened.
 6. The new checkpoint is read back from its place and its hashes compared.
 7. Only then are `step-N.old` and the checkpoints older than the `keep` newest retired: renamed to `.tmp-…`, the parent
    flushed, and deleted. So a half-deleted checkpoint is never seen under the name of a whole one.

Invariant (tests/checkpoints/test_crash.py): at every moment a reader finds the old newest step or the new one,
complete, bit for bit; never neither, never a mixture. This holds for a kill at any system call, for an I/O error at any
system call, and, in a model of POSIX file systems, for a power cut at any moment.

Loading looks at the newest step first; one that is damaged is named, passed over, and neither repaired nor deleted.
Readers never change anything. There is one writer at a time (the run's main process).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.checkpoints.manifest import (
    MANIFEST,
    Damaged,
    Moved,
    Unreadable,
    encode_manifest,
    read_directory,
    verify_directory,
    write_file,
)
from trivium.checkpoints.state import decode_state, encode_state
from trivium.checkpoints.tensors import RawTensor, TensorFile, parse
from trivium.errors import UserError
from trivium.files import TEMPORARY_PREFIX, make_directory, sync_directory, temporary_beside

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Mapping[str, Tensor | RawTensor]]

STATE = "state.json"
SUFFIX = ".safetensors"
STEP_DIRECTORY = re.compile(r"step-(0|[1-9][0-9]{0,17})(\.old)?")
STEM = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
# Room for the manifest, directory blocks and the rounding up of each file to whole blocks.
OVERHEAD_BYTES = 64 << 10
# How often a reader starts again because the writer replaced what it was reading.
READ_ATTEMPTS = 20


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, wholly in memory: the files it came from may be deleted now."""

    step: int
    path: Path
    raw: Mapping[str, Mapping[str, RawTensor]]
    """{stem: {name: tensor}} without torch."""
    state: dict[str, Any]

    @cached_property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """{stem: {name: CPU tensor}}, sharing the memory of `raw`."""
        return {stem: {name: raw.to_torch() for name, raw in named.items()} for stem, named in self.raw.items()}


def required_bytes(tensors: Tensors) -> int:
    """Disk space of one checkpoint of these tensors (their data is not touched: meta tensors will do)."""
    return sum(file.num_bytes for file in _lay_out(tensors).values()) + OVERHEAD_BYTES


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, keep: int = 2, note: Callable[[str], None] = lambda text: None) -> None:
        """Touches nothing yet. `keep`: how many of the newest to keep; `note` is told, in one line, what went wrong
        without stopping the work (a damaged checkpoint passed over, an old one that could not be deleted)."""
        if keep < 1:
            raise UserError(f"{directory}: keep must be at least 1, the newest checkpoint itself, not {keep}")
        self.directory = Path(directory)
        self.keep = keep
        self._note = note
        self._passed_over: set[int] = set()

    # Reading

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in rising order (not verified)."""
        return sorted(self._directories())

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, verified. Raises UserError when it is absent or damaged."""
        for _ in range(READ_ATTEMPTS):
            with suppress(Moved):
                places = self._directories()
                others = sorted(places.keys() - {step}) or "none"
                if step not in places:
                    raise UserError(f"{self.directory} has no checkpoint of step {step}; it has {others}")
                loaded, reasons = self._first_good(step, places[step])
                if loaded is None:
                    raise UserError(f"{'; '.join(reasons)}; other steps in {self.directory}: {others}")
                return loaded
        raise self._never_at_rest()

    def load_latest(self) -> Checkpoint | None:
        """The newest good checkpoint, None when there is no checkpoint at all.

        Damaged ones are named through `note` and passed over; UserError when there are some and none is good.
        """
        for _ in range(READ_ATTEMPTS):
            with suppress(Moved):
                return self._newest_good()
        raise self._never_at_rest()

    def _newest_good(self) -> Checkpoint | None:
        damages: list[str] = []
        for step, places in sorted(self._directories().items(), reverse=True):
            loaded, reasons = self._first_good(step, places)
            for reason in reasons:
                self._note(f"checkpoint passed over: {reason}")
            if loaded is not None:
                return loaded
            self._passed_over.add(step)
            damages += reasons
        if damages:
            cure = "move them away to start from the beginning, or put a copy in place"
            raise UserError(f"no good checkpoint in {self.directory}: {'; '.join(damages)}; {cure}")
        return None

    def _first_good(self, step: int, places: list[Path]) -> tuple[Checkpoint | None, list[str]]:
        """The first of a step's directories that is good, and what is wrong with those before it."""
        reasons: list[str] = []
        for path in places:
            try:
                return _load(path, step), reasons
            except Damaged as damage:
                reasons.append(f"{path} is damaged: {damage}")
            except Unreadable as reason:
                raise UserError(f"{path}: {reason}") from reason
        return None, reasons

    def _directories(self) -> dict[int, list[Path]]:
        """{step: its directories}, the regular one first, `.old` after it."""
        found: dict[int, list[Path]] = {}
        try:
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return found
        except OSError as error:
            raise UserError(f"{self.directory} could not be read: {error.strerror}") from error
        for path in paths:
            if match := STEP_DIRECTORY.fullmatch(path.name):
                found.setdefault(int(match[1]), []).append(path)
        return found

    def _never_at_rest(self) -> UserError:
        return UserError(
            f"{self.directory}: checkpoints were replaced faster than one could be read; keep more of them"
        )

    # Writing

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
        """Save a checkpoint durably and return its directory.

        `tensors` is {stem: {name: tensor}}, one `<stem>.safetensors` each; `state` goes to `state.json` (see
        `checkpoints/state.py` for what it may hold). UserError, with the older checkpoints intact, when the disk is
        full or fails; the next save may be tried.
        """
        files = _lay_out(tensors)
        state_json = encode_state(state)
        target = self.directory / f"step-{step:d}"
        if not STEP_DIRECTORY.fullmatch(target.name):
            raise ValueError(f"a step is a number from 0 to 10^18, not {step}")
        temporary = temporary_beside(target)
        try:
            make_directory(self.directory)
            self.clean()
            self._require_space(required_bytes(tensors) + len(state_json), 1)
            try:
                self._write(temporary, step, files, state_json)
                self._publish(temporary, target)
            except BaseException:
                _discard(temporary, [*(stem + SUFFIX for stem in files), STATE, MANIFEST])
                raise
            verify_directory(target, step)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"could not save {target}: {reason}; {self._situation(tensors)}") from error
        except (Damaged, Unreadable, Moved) as error:
            raise UserError(f"{target} was saved but does not read back: {error}; nothing older was deleted") from error
        self._rotate(step)
        return target

    def require_space(self, tensors: Tensors) -> None:
        """Refuse at the start a run whose disk cannot hold `keep` checkpoints and the one being written."""
        held = sum(len(places) for places in self._directories().values())
        self._require_space(required_bytes(tensors), max(1, self.keep + 1 - held))

    def clean(self) -> None:
        """Finish or undo what a killed save left behind. For the writer only, at its start; `save` does it too."""
        try:
            for path in sorted(self.directory.glob(f"{TEMPORARY_PREFIX}step-*")):
                self._delete(path)
            for step, places in self._directories().items():
                self._settle(step, places)
        except (OSError, Unreadable) as error:
            raise UserError(
                f"what an interrupted save left in {self.directory} could not be tidied: {error}"
            ) from error

    def _write(self, temporary: Path, step: int, files: Mapping[str, TensorFile], state_json: bytes) -> None:
        temporary.mkdir()
        entries = {
            stem + SUFFIX: write_file(temporary / (stem + SUFFIX), file.pieces()) for stem, file in files.items()
        }
        entries[STATE] = write_file(temporary / STATE, [state_json])
        write_file(temporary / MANIFEST, [encode_manifest(step, entries)])
        sync_directory(temporary)

    def _publish(self, temporary: Path, target: Path) -> None:
        if target.exists():
            target.rename(_aside(target))
            sync_directory(self.directory)
        temporary.rename(target)
        sync_directory(self.directory)

    def _rotate(self, step: int) -> None:
        """Retire what `step`, just verified, makes superfluous. A checkpoint known to be damaged does not count among
        the `keep` that stay, so it cannot push out a good one. Failing to delete does not undo the save."""
        self._passed_over.discard(step)
        try:
            places = self._directories()
        except UserError as error:
            self._note(f"older checkpoints stay: {error}")
            return
        counted = sorted(places.keys() - self._passed_over)
        oldest_kept = min(step, *counted[-self.keep :])
        retired = [path for other, paths in places.items() if other < oldest_kept for path in paths]
        self._retire([*retired, *places[step][1:]])

    def _settle(self, step: int, places: list[Path]) -> None:
        """Leave one directory for a step whose replacement was interrupted: the new one if it is good, else the old."""
        target = self.directory / f"step-{step}"
        if _aside(target) not in places:
            return
        if target in places:
            try:
                verify_directory(target, step)
                self._retire([_aside(target)])
                return
            except Damaged as damage:
                self._note(f"{target} gives way to the copy it was to replace, since it is damaged: {damage}")
            self._retire([target])
        _aside(target).rename(target)
        sync_directory(self.directory)

    def _retire(self, paths: list[Path]) -> None:
        """Take checkpoints out of sight, durably, then delete them."""
        graves = [temporary_beside(path) for path in paths]
        try:
            for path, grave in zip(paths, graves, strict=True):
                path.rename(grave)
            if graves:
                sync_directory(self.directory)
        except OSError as error:
            self._note(f"old checkpoints in {self.directory} could not be retired: {error.strerror}")
            return
        for grave in graves:
            self._delete(grave)

    def _delete(self, path: Path) -> None:
        try:
            shutil.rmtree(path)
        except OSError as error:
            self._note(f"{path} could not be deleted: {error.strerror}; it will be tried again at the next save")

    def _require_space(self, size: int, copies: int) -> None:
        existing = next(path for path in [self.directory, *self.directory.absolute().parents] if path.is_dir())
        free = shutil.disk_usage(existing).free
        if free < size * copies:
            need = f"a checkpoint needs {_bytes(size)}"
            if copies > 1:
                need = f"{copies} checkpoints need {_bytes(size * copies)} ({_bytes(size)} each)"
            cure = "free some, choose another disk, or keep fewer checkpoints"
            raise UserError(f"not enough space in {self.directory}: {need}, {_bytes(free)} are free; {cure}")

    def _situation(self, tensors: Tensors) -> str:
        """What the reader of a failure needs to know."""
        needed = f"a checkpoint needs {_bytes(required_bytes(tensors))}"
        with suppress(OSError, UserError):
            needed += f", {_bytes(shutil.disk_usage(self.directory).free)} are free"
            needed += f"; checkpoints here: steps {self.steps() or 'none'}"
        return needed


def _lay_out(tensors: Tensors) -> dict[str, TensorFile]:
    if bad := [stem for stem in tensors if not STEM.fullmatch(stem)]:
        raise ValueError(f"a file stem is made of a-z, 0-9, _ and -, not {bad}")
    return {stem: TensorFile(named, stem) for stem, named in tensors.items()}


def _load(path: Path, step: int) -> Checkpoint:
    """Read and parse one directory; what passes the hashes and still does not parse is damaged as well."""
    files = read_directory(path, step)
    raw, state, name = {}, None, STATE
    try:
        state = decode_state(files.pop(STATE))
        for name, data in files.items():
            raw[name.removesuffix(SUFFIX)] = parse(data)
    except KeyError:
        raise Damaged(MANIFEST, f"does not list {STATE}") from None
    except ValueError as error:
        raise Damaged(name, f"is not what its name says: {error}") from error
    return Checkpoint(step, path, raw, state)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _discard(directory: Path, names: list[str]) -> None:
    """Remove an unfinished directory without opening anything (the error may be that no file can be opened)."""
    with suppress(OSError):
        for name in names:
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()


def _bytes(count: int) -> str:
    """A size for people: 1.2 GB."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
