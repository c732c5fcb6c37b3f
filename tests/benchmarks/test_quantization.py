"""The quantization benchmark runs on a small model: quality first, speed added to it, a row for each format."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from cli.small_models import saved

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "quantization.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]


def test_quality_and_then_speed(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    formats, found, plot = "int8,int4:32:gptq,int4:32:awq", tmp_path / "found.json", tmp_path / "plot.png"
    sizes = ("--windows", "4", "--window-tokens", "64", "--calibration-windows", "4", "--prompts", "1")
    texts = ("--text", textwrap.__file__, "--calibration", json.__file__)
    files = ("--json", str(found), "--plot", str(plot))
    wanted = ("--model", str(model), "--formats", formats, "--threads", "1", "--only", "quality")
    table = rows(run(*wanted, *sizes, *texts, *files))
    names = ["format", "---", "fp32 (original)", *formats.split(",")]
    assert [row[0] for row in table] == names and {row[2] for row in table[2:]} == {""}
    whole = json.loads(found.read_text())
    results = whole["results"]
    assert results[0]["report"]["quality"]["kl"] == 0 < results[1]["report"]["quality"]["kl"]
    assert all(one["report"]["bytes"]["share"] < 0.6 for one in results[1:])
    assert plot.read_bytes().startswith(b"\x89PNG")

    table = rows(run("--only", "speed", "--json", str(found), "--threads", "1", "--loads", "1"))
    assert [row[0] for row in table] == names and all(float(row[column]) > 0 for row in table[2:] for column in (3, 10))
    after = json.loads(found.read_text())
    assert after.pop("speed_circumstances")
    for one, two in zip(results, after["results"], strict=True):
        assert one["report"].pop("speed") is None and two["report"].pop("speed")["writing"]["quantized"] > 0
        sizes_and_times = [two.pop(name) for name in ("file_bytes", "load_seconds", "load_peak_bytes")]
        assert min(sizes_and_times) > 0
    assert after == whole  # all other figures stay


def test_speed_needs_the_figures_of_a_run(tmp_path: Path) -> None:
    done = run("--only", "speed", "--json", str(tmp_path / "none.json"))
    assert done.returncode == 2 and "needs --json with the file of a run" in done.stderr
