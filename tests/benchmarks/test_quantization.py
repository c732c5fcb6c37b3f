"""The quantization benchmark runs on a small model and its table has a row for each format."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from cli.small_models import saved

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "quantization.py"


def test_small_run(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    formats, found, plot = "int8,int4:32:gptq,int4:32:awq", tmp_path / "found.json", tmp_path / "plot.png"
    options = ["--windows", "4", "--window-tokens", "64", "--calibration-windows", "4", "--prompts", "1"]
    files = ["--text", textwrap.__file__, "--calibration", json.__file__, "--json", str(found), "--plot", str(plot)]
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--formats", formats, "--threads", "1"]
    done = subprocess.run([*command, *options, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines()]
    assert rows == ["format", "---", "fp32 (original)", *formats.split(",")]
    whole = json.loads(found.read_text())
    results = whole["results"]
    assert results[0]["report"]["quality"]["kl"] == 0
    assert all(result["file_bytes"] < 0.6 * results[0]["file_bytes"] for result in results[1:])
    assert all(result["load_peak_bytes"] > 0 for result in results)
    assert plot.read_bytes().startswith(b"\x89PNG")
    # Speed again: its figures are new, all others stay.
    again = [sys.executable, str(SCRIPT), "--only", "speed", "--json", str(found), "--threads", "1"]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines()] == rows
    after = json.loads(found.read_text())
    assert after.pop("speed_circumstances")
    for one, two in zip(results, after["results"], strict=True):
        assert one["report"].pop("speed") != two["report"].pop("speed")
        assert one.pop("load_seconds") != two.pop("load_seconds") and one["file_bytes"] == two["file_bytes"]
        one["load_peak_bytes"] = two["load_peak_bytes"]
    assert after == whole


def test_speed_again_needs_the_figures_of_a_whole_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--only", "speed", "--json", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs --json with the file of a run" in done.stderr
