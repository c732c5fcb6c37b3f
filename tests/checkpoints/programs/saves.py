"""Make some saves, and say as JSON how each went. Run under strace by the crash tests; imports no torch.

usage: saves.py '{"directory": PATH, "keep": N, "saves": [[STEP, SEED], ...], "mutants": [NAME, ...], "max_file_bytes": N}'
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants import MUTANTS
from samples import sample

from trivium.checkpoints.store import CheckpointStore
from trivium.errors import UserError

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    for name in order.get("mutants", []):
        MUTANTS[name]()
    if limit := order.get("max_file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    notes: list[str] = []
    store = CheckpointStore(Path(order["directory"]), order["keep"], notes.append)
    outcomes = []
    for step, seed in order["saves"]:
        error = None
        try:
            store.save(step, *sample(seed))
        except UserError as refusal:
            error = str(refusal)
            # What was lifted outside meanwhile: another disk, files deleted.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        outcomes.append({"error": error, "notes": notes.copy()})
        notes.clear()
    print(json.dumps({"outcomes": outcomes, "torch": "torch" in sys.modules}))
    sys.stdout.flush()
    os._exit(2 if outcomes[-1]["error"] else 0)
