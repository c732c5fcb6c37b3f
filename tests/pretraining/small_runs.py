"""What the tests of whole runs in processes of their own share: starting them, ending them, comparing their losses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from trivium.checkpoints.store import CheckpointStore
from trivium.training.log import read_log

# One compute thread, as the processes of the suite share their cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# A machine shared with others may be ten times slower than a free one.
PATIENCE_S = 300.0
WITH_SMALL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({}, {}))
from trivium.cli import main
sys.exit(main())
"""

# The arguments: how many bytes of addresses more than torch takes, and the words of a command.
WITH_SMALL_MEMORY = """
import resource, sys, torch
facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
taken = int(facts["VmSize"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]), resource.RLIM_INFINITY))
from trivium.cli import main
sys.exit(main(sys.argv[2:]))
"""


def finished(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with what it said."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        **options,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    """Look again and again until `condition()`; AssertionError when the process ends first, or nothing happens."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"the run ended by itself (exit code {process.returncode})"
        assert time.monotonic() < deadline, "the run did not come to where it was waited for"
        time.sleep(0.002)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process and all its descendants, stopped first, so that none can react to another's end."""
    top = psutil.Process(process.pid)
    top.suspend()
    family = [top, *top.children(recursive=True)]
    for member in family[1:]:
        member.suspend()
    for member in family:
        member.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family[1:], timeout=PATIENCE_S)
    assert not alive, f"still there after SIGKILL: {alive}"


def losses(run: Path) -> dict[int, float]:
    """The loss of each step in a run's log; empty before there is one."""
    log = run / "metrics.jsonl"
    return {line["step"]: line["loss"] for line in read_log(log) if "loss" in line} if log.exists() else {}


def as_left_at(run: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run as it would be had it been killed some time after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for other in CheckpointStore(copy / "checkpoints").steps():
        if other > step:
            shutil.rmtree(copy / "checkpoints" / f"step-{other}")
    shutil.rmtree(copy / "model")
    for name in ("summary.json", "report.html"):
        (copy / name).unlink()
    return copy


def with_disk_full_at(num_bytes: int) -> list[str]:
    """`trivium`, where the kernel refuses to let a file grow beyond so many bytes."""
    return [sys.executable, "-c", WITH_SMALL_DISK.format(num_bytes, num_bytes)]
