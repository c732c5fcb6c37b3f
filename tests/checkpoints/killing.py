"""Kill a training run again and again, let it resume by itself, and compare what it ends with.

`kill_and_resume(command, run_dir, ...)` runs any command that trains in `run_dir` and resumes from it when it is run
again; `differences(reference_dir, run_dir, ...)` says in what the two finished runs differ. A kill is SIGKILL to the
whole process group. Kills inside a save are not left to luck: when a save is seen to begin, the group is stopped
(SIGSTOP), looked at, and killed only if it stands inside a save; so the phase in the report is what was really hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivium.checkpoints.store import CheckpointStore

GLANCE_S = 0.0005


@dataclass(frozen=True)
class Kill:
    """One kill: what the run was doing, and what could be resumed from afterwards."""

    phase: str
    """`writing` (a new checkpoint is half there), `retiring` (an old one is half gone), or `elsewhere`."""
    after_s: float
    """Seconds from the start of the process."""
    left: tuple[str, ...]
    """Files of the unfinished or half-deleted checkpoint."""
    newest: int | None
    """The newest good step found after the kill."""


@dataclass
class KillReport:
    """All kills of one run, and how it ended."""

    kills: list[Kill] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Damage that the store reported after a kill, steps that went backwards: must be empty."""
    exit_code: int | None = None

    @property
    def inside_saves(self) -> float:
        """The share of kills that hit a save."""
        return sum(kill.phase != "elsewhere" for kill in self.kills) / max(1, len(self.kills))


class Attempt:
    """One process of the run."""

    def __init__(self, command: Sequence[str], run_dir: Path, log: Path, environment: Mapping[str, str] | None) -> None:
        """Start it as the leader of a new process group, its output appended to `log`."""
        self.checkpoints = run_dir / "checkpoints"
        self._stale = set(self.unfinished())
        self._metrics = run_dir / "metrics.jsonl"
        self._metrics_before = self._metrics_stamp()
        self.started = time.monotonic()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
            )

    def unfinished(self) -> list[str]:
        """Names of checkpoints that are being written or deleted."""
        try:
            return [path.name for path in self.checkpoints.iterdir() if path.name.startswith(".tmp-step-")]
        except FileNotFoundError:
            return []

    def in_save(self) -> list[str]:
        """The same without what an earlier kill left behind."""
        return [name for name in self.unfinished() if name not in self._stale]

    def alive(self) -> bool:
        """The process has not ended by itself."""
        return self.process.poll() is None

    def _metrics_stamp(self) -> tuple[int, int] | None:
        try:
            status = self._metrics.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size

    def trains(self) -> bool:
        """It has written its first line or begun its first save."""
        return self._metrics_stamp() != self._metrics_before or bool(self.in_save())

    def stop(self) -> bool:
        """Freeze the whole group where it stands; False when it ended first."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, how).si_code == os.CLD_STOPPED

    def kill(self) -> Kill:
        """Kill the stopped group and report where it stood."""
        held = self.in_save()
        newest_name = max((int(name.split("-")[2]) for name in held), default=-1)
        visible = CheckpointStore(self.checkpoints).steps()
        phase = "elsewhere" if not held else "retiring" if newest_name < max(visible, default=-1) else "writing"
        left = tuple(f"{name}/{path.name}" for name in held for path in sorted((self.checkpoints / name).iterdir()))
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return Kill(phase, time.monotonic() - self.started, left, newest=None)

    def wait_until(self, condition: Callable[[], object], deadline: float) -> None:
        """Look again and again until `condition()`; RuntimeError when the run ends or the deadline passes first."""
        while not condition():
            if not self.alive():
                raise RuntimeError(
                    f"the run ended by itself (exit code {self.process.returncode}) before it was killed"
                )
            if time.monotonic() > deadline:
                raise RuntimeError("the run was not where it should be killed before the deadline")
            time.sleep(GLANCE_S)


def kill_and_resume(
    command: Sequence[str],
    run_dir: Path,
    kills: int,
    rng: random.Random,
    *,
    inside: float = 0.5,
    window_s: float = 1.0,
    deadline_s: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> KillReport:
    """Run `command` until it ends by itself, after killing it `kills` times at random moments.

    At least the share `inside` of the kills hits a save (after a random part of it); the others
    come up to `window_s` seconds after the process has begun to train. `deadline_s` bounds the wait for each of them
    and for the end. RuntimeError when the run is too short to be killed so often. Output: `<run_dir>.log`.
    """
    report = KillReport()
    wanted = [number < inside * kills for number in range(kills)]
    rng.shuffle(wanted)
    log = run_dir.with_name(run_dir.name + ".log")
    try:
        for inside_save in wanted:
            attempt = Attempt(command, run_dir, log, environment)
            deadline = attempt.started + deadline_s
            attempt.wait_until(attempt.trains, deadline)
            if inside_save:
                _stop_inside_save(attempt, rng, deadline)
            else:
                moment = time.monotonic() + rng.uniform(0, window_s)
                attempt.wait_until(lambda moment=moment: time.monotonic() >= moment, deadline)
                if not attempt.stop():
                    raise RuntimeError("the run ended by itself before it was killed")
            _judge(attempt.kill(), attempt.checkpoints, report)
        attempt = Attempt(command, run_dir, log, environment)
        report.exit_code = attempt.process.wait(deadline_s)
    finally:
        if attempt.alive():
            os.killpg(attempt.process.pid, signal.SIGKILL)
            attempt.process.wait()
    return report


def _stop_inside_save(attempt: Attempt, rng: random.Random, deadline: float) -> None:
    """Freeze the run inside a save. The first save is let pass and timed (so the run moves on between two kills); the
    next is stopped after a random part of that time, and one that was over too soon is let go."""
    length_s = None
    while True:
        attempt.wait_until(attempt.in_save, deadline)
        begun = time.monotonic()
        if length_s is not None:
            time.sleep(rng.uniform(0, 1.2 * length_s))
            if not attempt.stop():
                raise RuntimeError("the run ended by itself before it was killed")
            if attempt.in_save():
                return
            os.killpg(attempt.process.pid, signal.SIGCONT)
        attempt.wait_until(lambda: not attempt.in_save(), deadline)
        length_s = min(time.monotonic() - begun, length_s or deadline)


def _judge(kill: Kill, checkpoints: Path, report: KillReport) -> None:
    """Open the store as a resuming run would, and note everything that is not as it must be."""
    before = max((k.newest for k in report.kills if k.newest is not None), default=-1)
    loaded = CheckpointStore(checkpoints, note=report.complaints.append).load_latest()
    newest = None if loaded is None else loaded.step
    if (-1 if newest is None else newest) < before:
        report.complaints.append(f"step {before} was there before a kill and only {newest} after it")
    report.kills.append(Kill(kill.phase, kill.after_s, kill.left, newest))


def differences(
    reference: Path, other: Path, log_fields: Collection[str] = ("step", "loss"), files: Collection[str] = ()
) -> list[str]:
    """In what two finished runs differ: newest checkpoint (every bit of tensors and state), the given fields of
    `metrics.jsonl` line by line, and the given files byte by byte. Empty when they are the same."""
    found = []
    one, two = (CheckpointStore(run / "checkpoints").load_latest() for run in (reference, other))
    assert one is not None and two is not None, "a run without a checkpoint"
    if one.step != two.step:
        found.append(f"steps {one.step} and {two.step}")
    if json.dumps(one.state, sort_keys=True) != json.dumps(two.state, sort_keys=True):
        found.append("state.json")
    names = {(stem, name) for c in (one, two) for stem, named in c.raw.items() for name in named}
    for stem, name in sorted(names):
        a, b = (c.raw.get(stem, {}).get(name) for c in (one, two))
        if a is None or b is None or (a.dtype, a.shape, a.data) != (b.dtype, b.shape, b.data):
            found.append(f"{stem}/{name}")
    logs = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (reference, other)
    ]
    kept = [[{k: line[k] for k in log_fields if k in line} for line in log] for log in logs]
    if kept[0] != kept[1]:
        place = next((n for n, (a, b) in enumerate(zip(*kept, strict=False)) if a != b), min(map(len, kept)))
        found.append(f"metrics.jsonl from line {place + 1} on ({len(kept[0])} and {len(kept[1])} lines)")
    found += [name for name in files if (reference / name).read_bytes() != (other / name).read_bytes()]
    return found
