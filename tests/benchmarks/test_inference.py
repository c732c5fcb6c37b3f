"""The inference benchmark runs every engine that is installed, all write the same, and its ratios are sound."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from cli.small_models import saved

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "inference.py"


@pytest.fixture
def inference(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("inference")


def test_quick_run_of_every_engine(tmp_path: Path) -> None:
    """One small model; where llama.cpp or CTranslate2 is not installed, that is said."""
    model, target = saved(tmp_path / "model", "llama"), tmp_path / "result.json"
    peers = {"transformers-fp32": "transformers", "llama.cpp-bf16": "llama_cpp", "ctranslate2-fp32": "ctranslate2"}
    names = ["trivium-fp32", "trivium-int8-lookup", *peers, "llama.cpp-shipped"]
    options = ["--quick", "--threads", "1", "--prefill-tokens", "64", "--model", str(model), "--json", str(target)]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--contenders", ",".join(names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(target.read_text())
    absent = {name for name, package in peers.items() if find_spec(package) is None}
    assert set(report["skipped"]) == absent | {"llama.cpp-shipped"}
    results = {result["contender"]: result for result in report["results"]}
    assert set(results) == set(names) - set(report["skipped"])
    ours = results["trivium-fp32"]
    for name, result in results.items():
        workloads = {"prefill", "decode1", "decode8", "start"} | ({"copy"} if "trivium" in name else set())
        assert set(result["rounds"]) == workloads and all(value > 0 for value in result["medians"].values())
        assert 1 << 24 < result["peak_bytes_one_text"] <= result["peak_bytes"]
        if name in peers:  # the same weights in (nearly) the same precision write the same
            assert result["tokens"]["decode1"] == ours["tokens"]["decode1"]
    assert {"commit", "versions", "usable_cores"} <= set(report["circumstances"])
    goals = [goal["goal"] for goal in report["goals"]]
    assert any("`import torch`" in goal for goal in goals)
    assert all(f"| {name} |" in run.stdout for name in results)
    assert ("is no GGUF file" if "llama.cpp-bf16" not in absent else "llama_cpp is not installed") in run.stdout


def test_ratios_survive_a_machine_that_slows_down(inference: ModuleType) -> None:
    result = inference.Result
    ours = result("trivium-int8", {"decode1": [200.0, 200.0, 80.0, 80.0, 80.0]})
    theirs = result("llama.cpp-q8_0", {"decode1": [100.0, 100.0, 100.0, 40.0, 40.0]})
    slower = result("trivium-fp32", {"decode1": [1.0] * 5})
    (goal,) = [goal for goal in inference.GOALS if goal.name == "one text, 8 bits"]
    found = inference.ratio(goal, [slower, ours, theirs])
    assert found["ratio"] == 2.0 and found["reached"] and found["ours"] == "trivium-int8"
    # Broken control: the ratio of the medians says that the goal was missed.
    assert ours.median("decode1") / theirs.median("decode1") == 0.8
    assert inference.ratio(goal, [ours]) is None


def test_agreement_counts_up_to_the_first_difference(inference: ModuleType) -> None:
    one = inference.Result("a", tokens={"decode8": [[1, 2, 3, 4], [5, 6, 7, 8]]})
    two = inference.Result("b", tokens={"decode8": [[1, 2, 9, 4], [5, 6, 7, 8]]})
    assert inference.agreement(two, one, "decode8") == (6, 8)


def test_bad_options_are_refused(inference: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--contenders", "ollama"], ["--packed-dtype", "fp8"], ["--rounds", "many"]):
        with pytest.raises(SystemExit) as refused:
            inference.parse(argv)
        assert refused.value.code == 2
    assert "ollama: choose from trivium-fp32" in capsys.readouterr().err


def test_a_worker_that_fails_is_named(inference: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text("{}")
    job = inference.Job("trivium-fp32", "trivium", str(tmp_path / "absent"), str(tmp_path / "prompts.json"), threads=1)
    with pytest.raises(SystemExit, match=r"trivium-fp32 failed:\n(.|\n)*there is no model"):
        inference.start(job)
