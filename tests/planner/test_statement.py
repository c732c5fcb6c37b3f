"""What a run may take, and the refusal of what cannot fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planner.test_history import Notes
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.planner.memory import estimate
from trivium.planner.statement import available_bytes, group_limits, sentence, state_plan

SMALL = estimate(ModelConfig(vocab_size=512, width=64, layers=2, heads=4), rows_per_micro_batch=2, sequence_length=64)
# 70e9 parameters in fp32 fit into no machine that runs tests.
LARGE = estimate(
    ModelConfig(vocab_size=32000, width=8192, layers=80, heads=64, mlp_width=28672),
    rows_per_micro_batch=1,
    sequence_length=2048,
)


def test_what_fits_is_stated_and_goes_on() -> None:
    notes = Notes()
    state_plan(
        SMALL, "this run", suggest=lambda: pytest.fail("nothing is suggested where nothing is refused"), progress=notes
    )
    (line,) = notes.lines
    assert line.startswith("planned memory: ") and line.endswith(" available")
    assert sentence(SMALL) in line and "torch itself" in line


def test_what_cannot_fit_is_refused_with_cures() -> None:
    notes = Notes()
    cures = ["store int4: 40 GB", "two", "three", "a fourth is not shown"]
    with pytest.raises(UserError) as refused:
        state_plan(LARGE, "this run", suggest=lambda: cures, progress=notes)
    text = str(refused.value)
    assert "\n" not in text and sentence(LARGE) in text and "nothing was begun" in text
    assert "(1) store int4: 40 GB, (2) two, (3) three." in text and "fourth" not in text
    assert text.endswith("--ignore-plan")
    assert len(notes.lines) == 1  # it was stated first


def test_unless_told_otherwise() -> None:
    notes = Notes()
    state_plan(LARGE, "this run", ignore=True, override="ignore_plan=true", progress=notes)
    assert len(notes.lines) == 2 and notes.lines[1].endswith("going on, as told by ignore_plan=true")


def test_the_parts_of_the_sentence_are_the_whole() -> None:
    facts = {key: 1 << 20 for key in SMALL.to_dict() if key != "peak_bytes"}
    plan = type(SMALL)(**facts)
    shown = sentence(plan)
    assert shown.startswith("7.34 MB (") or len(facts) != 7
    assert f"the rest {1.048576 * (len(facts) - 4):.2f} MB" in shown


def test_what_is_available_is_less_than_the_machine_has() -> None:
    import psutil

    machine = psutil.virtual_memory()
    assert 0 < available_bytes() <= machine.total
    assert available_bytes() <= machine.available + psutil.Process().memory_info().rss + (256 << 20)


# A library that has reserved addresses, which count against a limit and hold nothing.
LIMITED = """
import mmap, resource, sys
from trivium.planner.statement import _free_bytes, available_bytes
reserved = mmap.mmap(-1, 1 << 29, flags=mmap.MAP_PRIVATE)
before = available_bytes()
resource.setrlimit(resource.{which}, (1 << 30, resource.RLIM_INFINITY))
left = available_bytes() - _free_bytes()[1]
bytearray(left - (16 << 20))
try:
    bytearray(left + (16 << 20))
except MemoryError:
    sys.exit(0 if left < 1 << 29 < 1 << 30 < before else 2)
sys.exit(1)
"""


@pytest.mark.parametrize("which", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_the_limits_of_the_process_leave_can_be_taken_and_no_more(which: str) -> None:
    assert subprocess.run([sys.executable, "-c", LIMITED.format(which=which)], check=False).returncode == 0


def group(folder: Path, version: int, most: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    limit, use, stat = names[version]
    (folder / f"memory.{limit}").write_text(f"{most}\n")
    (folder / f"memory.{use}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{stat} {cached}\nother 7\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    group(tmp_path / "a", 2, "1000", 700, 100)
    group(tmp_path / "a" / "b", 2, "max", 700, 100)
    assert group_limits("0::/a/b\n", tmp_path, held=50) == [450]  # 1000 - 700 + 100, and the 50 that are already ours
    assert group_limits("0::/\n", tmp_path, held=50) == []  # the root has no limit
    group(tmp_path / "memory", 1, "2000", 100, 0)
    group(tmp_path / "memory" / "job", 1, "900", 950, 0)
    memberships = "5:cpu,cpuacct:/job\n4:memory:/job\n0::/a\n"
    assert sorted(group_limits(memberships, tmp_path, held=50)) == [50, 450, 1950]
    # In a container the path is the host's, and only the mounted top can be seen.
    assert group_limits("4:memory:/docker/0123\n", tmp_path, held=0) == [1900]
