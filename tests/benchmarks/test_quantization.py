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
    results = json.loads(found.read_text())["results"]
    assert results[0]["report"]["quality"]["kl"] == 0
    assert all(result["file_bytes"] < 0.6 * results[0]["file_bytes"] for result in results[1:])
    assert all(result["load_peak_bytes"] > 0 for result in results)
    assert plot.read_bytes().startswith(b"\x89PNG")
