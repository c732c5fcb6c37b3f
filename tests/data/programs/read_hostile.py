"""Read each named file with 256 MB of address space to spare; print one JSON line per file: rows,
error, seconds of CPU.

Run as a process of its own, so that a real memory limit can be set.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - loaded before the limit is set

from trivium.data.readers import read_rows
from trivium.errors import UserError

SPARE_BYTES = 256 << 20


def main(names: list[str]) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    used = int(status["VmSize"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
    for name in names:
        start, rows, error = time.process_time(), 0, ""
        layout = "line" if ".lines." in name else "file"
        try:
            for _ in read_rows(name, text_layout=layout):
                rows += 1
        except UserError as refusal:
            error = str(refusal)
        print(json.dumps({"file": name, "rows": rows, "error": error, "seconds": time.process_time() - start}))


if __name__ == "__main__":
    main(sys.argv[1:])
