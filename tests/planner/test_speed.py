"""Where a plan's speeds come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium.errors import UserError
from trivium.machine import cpu_flags, usable_cores
from trivium.planner import speed

SPEEDS = [
    {"device": "cpu", "fp32_gflops": 400.0, "bf16_gflops": 900.0, "int8_gops": None, "read_gb_per_s": 40.0},
    {"device": "cuda:0", "fp32_gflops": 5e4, "bf16_gflops": 6e5, "int8_gops": None, "read_gb_per_s": 3000.0},
]
MACHINE = {"processor": "A Processor", "flags": list(cpu_flags()), "usable_cores": usable_cores(), "speeds": SPEEDS}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_file_of_doctor_gives_its_own_figures(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(MACHINE))
    here = speed.saved_speed(file, "cpu")
    assert (here.flops("fp32"), here.flops("bf16"), here.flops("fp16"), here.read_bytes) == (4e11, 9e11, 9e11, 4e10)
    assert "A Processor" in here.source
    assert speed.saved_speed(file, "cuda").bf16_flops == 6e14
    file.write_text(json.dumps({**MACHINE, "speeds": SPEEDS[:1]}))
    with pytest.raises(UserError, match="no cuda was measured there, only cpu"):
        speed.saved_speed(file, "cuda")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"speeds": []}', '{"speeds": [{"device": "cpu"}]}', "\xff"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="is not a description of a machine; write one with: trivium doctor"):
        speed.saved_speed(file, "cpu")
    with pytest.raises(UserError, match="cannot be read"):
        speed.saved_speed(tmp_path / "none.json", "cpu")


def test_what_doctor_found_is_remembered_for_this_machine_only() -> None:
    assert "just now" in speed.this_speed("cpu").source  # type: ignore[union-attr]
    assert speed.this_speed("cuda") is None
    speed.remember(MACHINE)
    found = speed.this_speed("cpu")
    assert found is not None and found.fp32_flops == 4e11 and "by trivium doctor" in found.source
    speed.remember({**MACHINE, "usable_cores": usable_cores() + 1})
    assert "just now" in speed.this_speed("cpu").source  # type: ignore[union-attr]


def test_where_nothing_can_be_kept_nothing_is(home: Path) -> None:
    home.write_text("a file where the folder should be")
    speed.remember(MACHINE)
    assert home.read_text().startswith("a file")


def test_a_quick_measure_is_a_speed() -> None:
    measured = speed.quick_speed()
    assert measured.fp32_flops > 1e8 and measured.read_bytes > 1e7
    assert measured.bf16_flops in (measured.fp32_flops, 2 * measured.fp32_flops)
