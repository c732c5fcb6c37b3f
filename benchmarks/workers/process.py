"""What the benchmarks share: contenders in processes of their own that answer in lines, and what figures depend on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

FOLDER = Path(__file__).resolve().parents[1]
ROOT = FOLDER.parent
# Settings of other libraries that decide how fast products are: each contender finds out for itself.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Worker:
    """A process that answers each line of its stdin with one JSON object on its stdout, and one object when it is
    ready."""

    def __init__(self, name: str, arguments: Sequence[str], threads: int = 0) -> None:
        """Start it and wait until it is ready; `threads` 0 leaves their number to it. It works in a folder of its own.

        `facts` is what it says of itself, `seconds` how long it took from its start.
        """
        self.name = name
        environment = {name: value for name, value in os.environ.items() if name not in UNSET}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER), environment.get("PYTHONPATH"))))
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "stderr"
        started = time.perf_counter()
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=self._folder.name,
            )
        self.facts = self._answer()
        self.seconds = time.perf_counter() - started

    def ask(self, command: str) -> dict[str, Any]:
        """One command's answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> dict[str, Any]:
        """End the process; what it says last."""
        answer = self.ask("quit")
        self._process.wait()
        return answer

    def kill(self) -> None:
        """End the process at once, whatever it does, and remove its files."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemExit(f"{self.name} failed:\n{self._errors.read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def stdout_for_answers() -> TextIO:
    """In a worker: where answers go. Whatever a library prints from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def tell(answers: TextIO, **facts: Any) -> None:
    """In a worker: answer."""
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on beside the code; packages that are absent have no version."""
    from trivium.machine import cpu_flags, memory_limit_bytes, usable_cores

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD") or None,
        "uncommitted_changes": bool(git("status", "--porcelain", "src")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := version(name)) is not None},
        "usable_cores": usable_cores(),
        "memory_bytes": memory_limit_bytes(),
        "processor_flags": list(cpu_flags()),
    }


def version(package: str) -> str | None:
    """The installed version of a package; None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def peak_resident_bytes() -> int:
    """The most memory that this process has held; no library is needed, so that none is counted which was not used."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak memory")
