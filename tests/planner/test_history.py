"""The history of runs: many processes, a bounded size, damage, and homes that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trivium.planner import history
from trivium.planner.history import PlannedRun, history_report, history_table, read_history, record_run

RUN = PlannedRun("generate", "models/small", "decoder", 1_000_000, "fp32", "cpu", 1, 300, 110, 100)


class Notes:
    """A progress that keeps its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def start(self, description: str, total: int | None = None, unit: str = "") -> None: ...

    def advance(self, amount: int = 1) -> None: ...

    def finish(self) -> None: ...


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_is_recorded_is_read(home: Path) -> None:
    record_run(RUN)
    record_run(replace(RUN, stage="pretrain", planned_bytes=80))
    runs, damaged = read_history()
    assert damaged == 0 and [run.stage for run in runs] == ["generate", "pretrain"]
    assert replace(runs[0], time="") == RUN and runs[0].time.endswith("Z")
    assert [run.error for run in runs] == pytest.approx([0.1, -0.2])
    report = history_report()
    assert report["path"] == str(home / "history.jsonl")
    assert report["median_error"] == pytest.approx(0.15) and report["worst_error"] == pytest.approx(0.2)
    table = history_table(report)
    assert "+10.0%" in table and "-20.0%" in table and "15.0% in the median, 20.0% at worst" in table
    assert json.loads(json.dumps(report)) == report


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRIVIUM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert history.history_path() == tmp_path / "data" / "trivium" / "history.jsonl"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history.history_path() == tmp_path / ".local" / "share" / "trivium" / "history.jsonl"


def test_without_a_history() -> None:
    report = history_report()
    assert report["runs"] == [] and report["median_error"] is None
    assert "no run has been planned and measured yet" in history_table(report)


WRITER = """
import sys
from trivium.planner import history
history.LARGEST_BYTES = int(sys.argv[2])
for number in range(60):
    run = history.PlannedRun("generate", f"{sys.argv[1]}-{number}" + "x" * 150, "decoder", 1, "fp32", "cpu", 1, 1, 2, 1)
    history.record_run(run)
"""


def written_by_processes(home: Path, largest: int) -> list[PlannedRun]:
    environment = {**os.environ, "TRIVIUM_HOME": str(home)}
    command = [sys.executable, "-c", WRITER]
    processes = [subprocess.Popen([*command, str(n), str(largest)], env=environment) for n in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    runs, damaged = read_history()
    assert damaged == 0
    return runs


def test_processes_that_write_at_once(home: Path) -> None:
    names = {run.model.rstrip("x") for run in written_by_processes(home, 1 << 20)}
    assert names == {f"{process}-{number}" for process in range(4) for number in range(60)}


def test_its_size_is_bounded(home: Path) -> None:
    runs = written_by_processes(home, 1 << 14)  # 240 lines of 330 bytes: five files of this size
    assert {path.name for path in home.iterdir()} == {"history.jsonl", "history.old.jsonl"}
    assert all(path.stat().st_size <= (1 << 14) + 4 * history.LONGEST_LINE for path in home.iterdir())
    # What is left of each process is its newest lines, none missing between them.
    assert len(runs) > 40
    for process in range(4):
        numbers = [int(name.split("-")[1]) for run in runs if (name := run.model.rstrip("x")).startswith(f"{process}-")]
        assert numbers == list(range(60 - len(numbers), 60))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'"text"',
        b"[" * 5000,
        json.dumps({**RUN.__dict__, "peak_bytes": 0}).encode(),
        json.dumps({**RUN.__dict__, "peak_bytes": True}).encode(),
        json.dumps({**RUN.__dict__, "rows": "1"}).encode(),
        json.dumps({**RUN.__dict__, "planned_bytes": 1 << 200}).encode(),
        b"\xff\xfe",
    ],
)
def test_damaged_lines_are_left_out(home: Path, line: bytes) -> None:
    record_run(RUN)
    with (home / "history.jsonl").open("ab") as file:
        file.write(line + b"\n")
    record_run(RUN)
    report = history_report()
    assert len(report["runs"]) == 2 and report["damaged"] == 1
    assert "1 damaged lines" in history_table(report)


def test_a_home_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "file"))
    notes = Notes()
    record_run(RUN, notes)
    (line,) = notes.lines
    assert "could not be added to history.jsonl" in line
    assert history_report()["runs"] == []


def test_names_of_any_kind(home: Path) -> None:
    record_run(replace(RUN, model="models/\udcff\n" + "é" * 5000))
    (run,), damaged = read_history()
    assert damaged == 0 and len(run.model) == history.LONGEST_NAME
    assert history_table(history_report()).count("\n") == 4
