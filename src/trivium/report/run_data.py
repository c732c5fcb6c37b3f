"""What a run directory says about itself, read tolerantly.

`recipe.yaml`, `metrics.jsonl` and `summary.json` are each optional: a run may be in progress, or have failed before
it wrote them, and the report must still come out. Nothing read here is trusted: files and lines are read up to a
limit, values of the wrong type are treated as absent, a damaged line is skipped and counted, and each thing left out
becomes one sentence in `RunData.notes`.

The invariant its test checks: any bytes in the three files give a `RunData`, never an exception.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from trivium.errors import UserError
from trivium.report import units

# Limits of what is read: far above what a run writes, far below what hurts a machine.
MAX_METRICS_BYTES = 512 * 10**6
MAX_LINE_BYTES = 64 << 10
MAX_DOCUMENT_BYTES = 4 * 10**6
MAX_EVENTS = 200

# The keys of `metrics.jsonl` that become curves; others are ignored.
CURVES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "seconds",
    "held_out_loss",
    "held_out_bits_per_byte",
    "held_out_accuracy",
    "held_out_bleu",
    "held_out_rouge1",
    "held_out_rouge2",
    "held_out_rougeL",
    "held_out_f1",
    "held_out_exact_match",
    "general_bits_per_byte",
    "general_loss",
)
# Where one of these is null, the value was NaN or infinite, which JSON cannot say.
NEVER_EMPTY = frozenset({"loss", "grad_norm", "held_out_loss"})

Facts = Mapping[str, object]


@dataclass(frozen=True)
class Curve:
    """One metric over optimizer steps, ascending in step, finite values only."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class RunData:
    """Everything the page is made of."""

    directory: Path
    summary: Facts = field(default_factory=dict)
    recipe: Facts = field(default_factory=dict)
    """The recipe decoded ({} when it cannot be)."""
    recipe_text: str = ""
    """The recipe as it was written."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Every name of `CURVES`; a metric that was never logged is an empty curve."""
    last_step: int | None = None
    """The highest optimizer step in `metrics.jsonl`."""
    events: tuple[tuple[int, str], ...] = ()
    """(step, what happened)."""
    non_finite: int = 0
    """How many logged values were NaN or infinite."""
    notes: tuple[str, ...] = ()
    """What could not be read and why, one sentence each."""

    def curve(self, name: str) -> Curve:
        """The curve of a metric, empty when it was never logged."""
        return self.curves.get(name, Curve())


def read_run(directory: Path) -> RunData:
    """Read a run directory. UserError when it is not one (no recipe, no metrics and no summary)."""
    if not any((directory / name).is_file() for name in ("recipe.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(
            f"{directory}: not a run directory (it has no recipe.yaml, metrics.jsonl or summary.json); "
            "give the folder that a run wrote"
        )
    notes: list[str] = []
    recipe_text = _read_text(directory / "recipe.yaml", notes) or ""
    log = _read_log(directory / "metrics.jsonl", notes)
    return RunData(
        directory=directory,
        summary=_decode(_read_text(directory / "summary.json", notes), "summary.json", notes),
        recipe=_decode(recipe_text, "recipe.yaml", notes),
        recipe_text=recipe_text,
        curves={name: log.curve(name) for name in CURVES},
        last_step=max((steps[-1] for steps in log.steps.values() if steps), default=None),
        events=tuple(log.events),
        non_finite=log.non_finite,
        notes=tuple(notes),
    )


def number(facts: Facts, *keys: str) -> float | None:
    """The first of `keys` that holds a finite number, else None."""
    for key in keys:
        value = _finite(facts.get(key))
        if value is not None:
            return value
    return None


def words(facts: Facts, key: str, limit: int = 10_000) -> str:
    """The text under `key` cut to `limit` characters, or "" when there is none."""
    value = facts.get(key)
    if not isinstance(value, str):
        return ""
    # Half of a surrogate pair can be written in JSON but not in UTF-8.
    value = value.encode("utf-8", "replace").decode("utf-8")
    return value if len(value) <= limit else value[:limit] + " […]"


def part(facts: Facts, key: str) -> Facts:
    """The mapping under `key`, or an empty one."""
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:  # an integer beyond the range of a float
        return None
    return result if math.isfinite(result) else None


def _read_text(path: Path, notes: list[str]) -> str | None:
    """The file's text up to the limit; None (and a note) when it is absent or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        notes.append(f"{path.name} is not there.")
        return None
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}.")
        return None
    if len(data) > MAX_DOCUMENT_BYTES:
        notes.append(f"{path.name} is larger than {units.size(MAX_DOCUMENT_BYTES)} and was left out.")
        return None
    return data.decode("utf-8", "replace")


def _decode(text: str | None, name: str, notes: list[str]) -> Facts:
    """The mapping that a JSON or YAML text holds; {} and a note when it holds none."""
    if not text:
        return {}
    try:
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        notes.append(f"{name} is damaged: it could not be decoded.")
        return {}
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    notes.append(f"{name} does not hold a table of names and values.")
    return {}


@dataclass
class _Log:
    """`metrics.jsonl` while it is read: columns of plain numbers, so that a million lines stay small."""

    steps: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in CURVES})
    values: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in CURVES})
    events: list[tuple[int, str]] = field(default_factory=list)
    non_finite: int = 0
    damaged: int = 0

    def add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            self.damaged += 1
            return
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
            self.damaged += 1
            return
        if "loss" in record:
            self.rewind(step, CURVES)
        for name in CURVES:
            if name not in record:
                continue
            value = _finite(record[name])
            if value is not None:
                self.rewind(step, (name,))
                self.steps[name].append(step)
                self.values[name].append(value)
            elif isinstance(record[name], float) or (record[name] is None and name in NEVER_EMPTY):
                self.non_finite += 1
        if isinstance(record.get("event"), str) and len(self.events) < MAX_EVENTS:
            self.events.append((step, words(record, "event", limit=300)))

    def rewind(self, step: int, names: Iterable[str]) -> None:
        """Forget what was logged from `step` on: a resumed run goes back to its checkpoint and logs it again."""
        for name in names:
            while self.steps[name] and self.steps[name][-1] >= step:
                self.steps[name].pop()
                self.values[name].pop()

    def curve(self, name: str) -> Curve:
        return Curve(tuple(self.steps[name]), tuple(self.values[name]))


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, each cut at `MAX_LINE_BYTES`; the unfinished last line of a live run is left out."""
    with path.open("rb") as file:
        read = 0
        while read < MAX_METRICS_BYTES and (line := file.readline(MAX_LINE_BYTES)):
            read += len(line)
            if line.endswith(b"\n") or len(line) == MAX_LINE_BYTES:
                yield line


def _read_log(path: Path, notes: list[str]) -> _Log:
    log = _Log()
    try:
        for line in _lines(path):
            if line.strip():
                log.add(line)
        too_long = path.stat().st_size > MAX_METRICS_BYTES
    except FileNotFoundError:
        notes.append(f"{path.name} is not there.")
        return log
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}.")
        return log
    if too_long:
        notes.append(f"Only the first {units.size(MAX_METRICS_BYTES)} of {path.name} were read.")
    if log.damaged:
        lines = "line" if log.damaged == 1 else "lines"
        notes.append(f"{log.damaged} damaged {lines} of {path.name} skipped.")
    return log
