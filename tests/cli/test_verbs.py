"""The verbs at work, one after the other, on real text: what each prints, and the keys of its JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cli.small_models import MEMORY
from trivium.cli import main

RECIPE = """
run: run
tokenizer: {vocab_size: 300}
data:
  train: text.txt
  held_out_by: tail
  sequence_length: 32
  rows_per_step: 4
  rows_per_micro_batch: 2
  cache_directory: cache
model: {width: 32, layers: 2, heads: 2}
training: {steps: 4, save_every_steps: 2, precision: fp32}
sample_prompts: ["def "]
sample_tokens: 8
"""

Json = Callable[..., dict]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a tokenizer and a trained model, all made by the verbs."""
    folder = tmp_path_factory.mktemp("verbs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("text.txt").write_text(Path(textwrap.__file__).read_text())
        Path("recipe.yaml").write_text(RECIPE)
        assert main(["tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "tokenizer", "--quiet"]) == 0
        assert main(["pretrain", "recipe.yaml", "training.steps=3", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def result(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Json:
    """Run a command in that folder and read its JSON."""
    monkeypatch.chdir(place)

    def command(*words: object) -> dict:
        assert main([*map(str, words), "--json"]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return command


def test_tokenizer(result: Json) -> None:
    text = "def wrap(text): naïve 🙂"
    ids = result("tokenizer", "encode", "tokenizer", text)["ids"]
    assert result("tokenizer", "decode", "tokenizer", *ids) == {"text": text}
    special = "<|endoftext|>"
    plain, parsed = (result("tokenizer", "encode", "tokenizer", special, *flag)["ids"] for flag in ((), ("--special",)))
    assert len(parsed) == 1 < len(plain)
    report = result("tokenizer", "report", "tokenizer", "text.txt")
    assert report["bytes_per_token"] > 1 and report["num_bytes"] == Path("text.txt").stat().st_size
    learned = result("tokenizer", "train", "text.txt", "--vocab-size", 300, "--out", "again")
    rows = Path("rows.jsonl")
    rows.write_text(json.dumps({"text": Path("text.txt").read_text()}) + "\n")
    assert (
        result("tokenizer", "train", rows, "--vocab-size", 300, "--out", "rows")["fingerprint"]
        == learned["fingerprint"]
    )


def test_ids_that_do_not_exist_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "decode", str(place / "tokenizer"), "1", "300"]) == 2
    assert "id 300" in capsys.readouterr().err


def test_pretrain_and_resume(result: Json) -> None:
    fixed = {"run", "model", "steps", "final_loss", "tokens_per_second", "peak_bytes", "planned_peak_bytes"}
    first = result("pretrain", "recipe.yaml", "training.steps=3")  # finished before: found so, and measured again
    again = result("resume", "run")
    for found in (first, again):
        assert fixed <= found.keys() and found["steps"] == 3
    assert again["final_loss"] == first["final_loss"]
    saved = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert saved["training"]["steps"] == 3 and saved["model"]["width"] == 32
    assert "# " in Path("run/recipe.yaml").read_text()


def test_generate(result: Json, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", "run/model", "--prompt", "def wrap", "--max-new-tokens", 6)
    found = result(*command)
    assert found.keys() == {*MEMORY, "text", "tokens", "finish_reason", "tokens_per_second"}
    assert len(found["tokens"]) <= 6 and found["finish_reason"] in ("length", "stop")
    assert main([str(word) for word in command]) == 0
    assert capsys.readouterr().out == found["text"] + "\n"
    sampled = [result(*command, "--temperature", 1.5, "--seed", seed)["tokens"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    (stop,) = found["text"][:1] or "x"
    assert result(*command, "--stop", stop)["text"] == ""


def test_perplexity(result: Json) -> None:
    found = result("metric", "perplexity", "run/model", "--file", "text.txt")
    assert found.keys() == {*MEMORY, "perplexity", "bits_per_byte", "nll", "num_tokens"}
    assert 1 < found["perplexity"] < 310 and 0 < found["bits_per_byte"] < 9


def test_report(result: Json) -> None:
    Path("run/report.html").unlink()
    page = Path(result("report", "run")["report"])
    assert page == Path("run/report.html") and page.read_text().startswith("<!DOCTYPE html>")


def test_a_run_told_to_end_saves_and_says_how_to_go_on(place: Path) -> None:
    settings = ["run=told", "training.steps=1000000", "training.save_every_steps=1000000", "training.log_every_steps=1"]
    command = [sys.executable, "-m", "trivium", "pretrain", "recipe.yaml", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=place, env=environment, stdout=-1, stderr=-1, text=True) as process:
        metrics = place / "told" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == "" and "trivium: " in err and "trivium resume" in err and "Traceback" not in err
    assert list((place / "told" / "checkpoints").glob("step-*"))
