"""A save under strace: every system call that changes a file, and the same save killed or failed at any one of them.

Each run is a real process on real files. The calls of one unharmed run are counted per name (strace counts them so);
then the run is repeated with `inject=NAME:signal=SIGKILL:when=N` or `inject=NAME:error=ERRNO:when=N`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SAVES = Path(__file__).parent / "programs" / "saves.py"
SOURCES = Path(__file__).resolve().parents[2] / "src"
# Every call by which a process changes files or makes them durable; those never used by a save simply never occur.
CHANGING = (
    "open,openat,creat,mkdir,mkdirat,write,writev,pwrite64,pwritev,sendfile,copy_file_range,fsync,fdatasync,"
    "sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,truncate,"
    "ftruncate,fallocate"
)
LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) = (-?\d+)(.*)$")


@dataclass(frozen=True)
class Call:
    """The `nth` call (from 1) of `name` in a process; `arguments` and `result` as strace prints them."""

    name: str
    nth: int
    arguments: str
    result: str

    @property
    def harmless(self) -> bool:
        """Opening without creating changes nothing; descriptor 1 is the program's own talk."""
        opening = "open" in self.name and "O_CREAT" not in self.arguments
        return opening or (self.name == "writev" and self.arguments.startswith("1<"))


def order(directory: Path, saves: list[tuple[int, int]], keep: int = 1, **more: Any) -> str:
    """The argument of `programs/saves.py`."""
    return json.dumps({"directory": str(directory), "keep": keep, "saves": saves, **more})


@dataclass(frozen=True)
class Ended:
    """How a process that made saves ended: exit status (negative: a signal), and what it told before."""

    status: int
    outcomes: list[dict[str, Any]] | None


@cache
def saver() -> subprocess.Popen[str]:
    """`programs/saves.py`, which forks a process for each order (it ends when this process does)."""
    environment = {"PYTHONPATH": str(SOURCES), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-S", str(SAVES)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(argument: str, *strace: str) -> Ended:
    """Make the saves of an order in a process of their own, under strace when options for it are given."""
    process = saver()
    assert process.stdin and process.stdout
    process.stdin.write(argument)
    process.stdin.flush()
    child = int(process.stdout.readline())
    tracer = strace and subprocess.Popen(
        ["strace", "-qq", "-p", str(child), *strace], stderr=subprocess.PIPE, text=True
    )
    while tracer and tracer.poll() is None and "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.001)
    refused = tracer and tracer.poll() is not None
    process.stdin.write("\n")
    process.stdin.flush()
    lines = [process.stdout.readline()]
    while not re.fullmatch(r"-?\d+\n", lines[-1]):
        assert lines[-1], "the program that makes saves is gone"
        lines.append(process.stdout.readline())
    if tracer and (tracer.wait(60) or refused):
        raise RuntimeError(f"strace: {tracer.communicate()[1].strip()}")
    return Ended(int(lines[-1]), json.loads(lines[0]) if len(lines) > 1 else None)


@cache
def why_not() -> str | None:
    """Why strace cannot be used here (None when it can)."""
    if shutil.which("strace") is None:
        return "needs strace (a Debian package), which is not installed"
    try:
        run(order(Path(os.devnull), []), "-o", os.devnull, "-e", "trace=none")
    except RuntimeError as error:
        return f"strace may not trace here: {error}"
    return None


def record(argument: str, log: Path) -> list[Call]:
    """All file-changing calls of an unharmed run, in order, with the data written."""
    done = run(argument, "-y", "-s", "100000", "-o", str(log), "-e", f"trace={CHANGING}")
    assert done.status == 0
    counts: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        match = LINE.match(line)
        assert match, f"a line of strace that is not understood: {line[:200]}"
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        calls.append(Call(name, counts[name], match[2], match[3] + match[4]))
    return [call for call in calls if not call.harmless]


def killed_at(argument: str, call: Call) -> None:
    """Run the saves, killed on entering `call`."""
    done = run(argument, "-o", os.devnull, "-e", f"trace={call.name}", "-e", inject(call, "signal=SIGKILL"))
    assert done == Ended(-signal.SIGKILL, None), f"not killed at {call}: {done}"


def failed_at(argument: str, call: Call, errno_name: str, forever: bool = False) -> Ended:
    """Run the saves with `call` (and, if `forever`, all its later namesakes) failing with `errno_name`."""
    failure = inject(call, f"error={errno_name}") + ("+" if forever else "")
    return run(argument, "-o", os.devnull, "-e", f"trace={call.name}", "-e", failure)


def inject(call: Call, what: str) -> str:
    """strace's words for it."""
    return f"inject={call.name}:{what}:when={call.nth}"
