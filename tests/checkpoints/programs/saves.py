"""Make saves as ordered, each order in a process of its own, and say as JSON how they went. Imports no torch.

One order is one message on the standard input:
    {"directory": PATH, "keep": N, "saves": [[STEP, SEED], ...]}
also "mutants": [NAME, ...] (break the store first) and "max_file_bytes": N (until a save has failed). The answer is
three lines: the number of the process, which then waits for any further message (so that it can be traced from its
first step on); its outcomes, if it lives to tell them; and its exit status, negative for a signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from checkpoints.mutants import MUTANTS
from checkpoints.samples import sample
from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError

PR_SET_PTRACER = 0x59616D61


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes (-1: no limit)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def make_saves(order: dict[str, Any]) -> list[dict[str, Any]]:
    """The error (or None) and the notes of each save."""
    for name in order.get("mutants", []):
        MUTANTS[name]()
    limit_files(order.get("max_file_bytes", -1))
    notes: list[str] = []
    store = CheckpointStore(Path(order["directory"]), order["keep"], notes.append)
    outcomes = []
    for step, seed in order["saves"]:
        error = None
        try:
            store.save(step, *sample(seed))
        except UserError as refusal:
            error = str(refusal)
            limit_files(-1)
        outcomes.append({"error": error, "notes": notes.copy()})
        notes.clear()
    return outcomes


if __name__ == "__main__":
    while message := os.read(0, 1 << 16):
        if child := os.fork():
            print(child, flush=True)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, flush=True)
        else:
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))  # where only parents may trace: let anyone
            os.read(0, 1)
            outcomes = json.dumps(make_saves(json.loads(message))) + "\n"
            assert "torch" not in sys.modules
            os.writev(1, [outcomes.encode()])  # not `write`, which may have been made to fail
            os._exit(0)
