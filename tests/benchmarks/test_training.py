"""The training benchmark runs, compares models of equal size, and its ratios survive a drifting machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "training.py"


@pytest.fixture
def training(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("training")


def test_tiny_run(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    options = ["--shapes", "tiny", "--modes", "fp32", "--rounds", "3", "--steps", "1", "--threads", "1"]
    contenders = ["--contenders", "trivium-llama,llama,trivium-gpt2,gpt2", "--json", str(target)]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options, *contenders], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "tokens/s" in run.stdout and "x the speed" in run.stdout
    report = json.loads(target.read_text())
    (group,) = report["groups"]
    results = {result["contender"]: result for result in group["results"]}
    for ours, theirs in (("trivium-llama", "llama"), ("trivium-gpt2", "gpt2")):
        assert results[ours]["parameters"] == results[theirs]["parameters"]
    for result in results.values():
        assert len(result["tokens_per_second"]) == 3
        assert abs(result["loss"] - math.log(256)) < 0.5
        assert result["peak_bytes"] > 1 << 26
    assert set(group["ratios"]) == {"Llama shape", "GPT-2 shape"}
    assert {"commit", "versions", "usable_cores"} <= set(report["circumstances"])


def test_ratios_survive_a_machine_that_slows_down(training: ModuleType) -> None:
    pace = [1.0, 1.0, 0.4, 0.4, 0.4]  # the third round begins slow: between the turns of the two
    ours = training.Result("trivium-llama", 1, 1, [2000 * p for p in (1.0, 1.0, 1.0, 0.4, 0.4)], peak_bytes=50)
    theirs = training.Result("llama", 1, 1, [1000 * p for p in pace], peak_bytes=100)
    ratio = training.ratios([ours, theirs])["Llama shape"]
    assert ratio == {"speed": 2.0, "memory": 0.5}
    # Broken control: the ratio of the medians is wrong by a factor.
    assert ours.median / theirs.median == 5.0


def test_bad_options_are_refused(training: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--modes", "fp8"], ["--rounds", "0"], ["--contenders", "lama"]):
        with pytest.raises(SystemExit) as refused:
            training.parse(argv)
        assert refused.value.code == 2
    assert "lama: choose from trivium-llama" in capsys.readouterr().err


def test_a_worker_that_fails_is_named(training: ModuleType) -> None:
    job = training.Job("llama", "fp32", vocab_size=16, width=10, layers=1, heads=3, length=4, rows=1, threads=1)
    with pytest.raises(SystemExit, match=r"llama \(fp32\) failed:\n(.|\n)*Error"):
        training.start(job)
