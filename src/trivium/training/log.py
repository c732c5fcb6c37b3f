"""`metrics.jsonl`: one JSON object per line, the record of a run.

Three kinds of line, told apart by their keys; `step` counts finished steps:
  {"step", "loss", "learning_rate", "grad_norm", "targets", "tokens", ...}   a training step (`tokens`: since the start)
  {"step", "held_out_loss", ...}                                             an evaluation
  {"step", "event"}                                                          something happened, in words

The keys in `TIMING_KEYS` depend on the machine; all others are the same, to the last bit, in every repetition of a
run, and in a run that was killed and resumed: at a resume the log is cut back to what it was at the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trivium.config import plain

Record = Mapping[str, Any]

TIMING_KEYS = frozenset({"seconds", "tokens_per_second", "mfu", "memory_bytes"})


class MetricsLog:
    """The log, open for appending."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Continue the log after its first `keep_bytes` (0: begin anew)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(min(keep_bytes, os.fstat(self._file.fileno()).st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, record: Record) -> None:
        """Append one line, NaN and infinity as null; it is in the file when this returns."""
        self._file.write(json.dumps(plain(record), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Flush to the disk; how many bytes the log has."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def repeatable(record: Record) -> dict[str, Any]:
    """The part of a record that does not depend on the machine."""
    return {key: value for key, value in record.items() if key not in TIMING_KEYS}
