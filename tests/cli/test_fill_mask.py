"""`trivium fill-mask`, as a process too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.small_models import refusal, result, saved, shown


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "model", "bert")


def test_the_seed_example_as_a_process(encoder: Path) -> None:
    words = [sys.executable, "-m", "trivium", "fill-mask", encoder, "The teacher [MASK] the student.", "--json"]
    run = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    candidates = json.loads(run.stdout)["candidates"]
    assert run.stdout.count("\n") == 1 and len(candidates) == 5
    for candidate in candidates:
        assert candidate.keys() == {"token", "probability", "text"}
        assert candidate["text"].startswith("The teacher") and candidate["text"].endswith("the student.")
    probabilities = [candidate["probability"] for candidate in candidates]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1


def test_several_blanks(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, "fill-mask", encoder, "A [MASK] wraps [MASK].", "--top-k", 3)
    assert [len(candidates) for candidates in found["masks"]] == [3, 3]
    assert found["candidates"] == found["masks"][0] != found["masks"][1]
    table = shown(capsys, "fill-mask", encoder, "A [MASK] wraps [MASK].", "--top-k", 3)
    first, second = table.split("\n\n")
    assert len(first.splitlines()) == len(second.splitlines()) == 3
    assert f"{found['candidates'][0]['probability']:.2%}" in first.splitlines()[0]


def test_refusals(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no [MASK] to fill in" in refusal(capsys, "fill-mask", encoder, "nothing to fill")
    assert "top-k" in refusal(capsys, "fill-mask", encoder, "a [MASK]", "--top-k", 0)
    decoder = saved(tmp_path / "decoder", "llama")
    assert "this model is a decoder" in refusal(capsys, "fill-mask", decoder, "a [MASK]")
