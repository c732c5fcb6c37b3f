"""`trivium export` from the command line: files, figures and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.gguf_models import config_of, model_of, tokenizer
from cli.small_models import refusal, saved, shown
from trivium.checkpoints.bundle import load
from trivium.checkpoints.directory import save_model_directory
from trivium.cli import main


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of("llama")
    path = tmp_path_factory.mktemp("run") / "model"
    save_model_directory(path, model_of(config), config, tokenizer())
    return path


def test_gguf_and_back(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, again = tmp_path / "small.gguf", tmp_path / "again"
    command = ["export", str(directory), "--to", "gguf", "--out", str(file), "--dtype", "fp32", "--verify"]
    assert main([*command, "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found == {
        "path": str(file),
        "readme": str(tmp_path / "small.README.md"),
        "format": "gguf",
        "dtype": "fp32",
        "num_bytes": file.stat().st_size,
        "verified": True,
        "prompts": 32,
        "same_ids": 32,
        "positions": found["positions"],
        "kl_mean": 0.0,
        "kl_max": 0.0,
        "top1_agreement": 1.0,
        "same_texts": 32,
    }
    assert main(["export", str(file), "--to", "hf", "--out", str(again), "--json", "--quiet"]) == 0
    assert "verified" not in json.loads(capsys.readouterr().out)
    prompt = "It was the age"
    texts = {load(path).generate(prompt, max_new_tokens=12).text for path in (directory, file, again)}
    assert len(texts) == 1
    assert main(["generate", str(file), "--prompt", prompt, "--max-new-tokens", "12", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == texts.pop() + "\n"


def test_for_people_the_figures_are_a_table(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(directory), "--to", "hf", "--out", str(tmp_path / "copy"), "--verify"]
    assert main([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    rows = dict(line.rsplit("  ", 1) for line in said.out.splitlines())
    rows = {name.strip(): value for name, value in rows.items()}
    assert rows["KL divergence, mean"] == "0.00e+00 nats" and rows["prompts tokenized alike"] == "32 of 32"
    assert rows["verified"] == "True" and "comparing" in said.err


def test_figures_that_a_model_has_not_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", "bert", head="none")
    out = shown(capsys, "export", model, "--to", "hf", "--out", tmp_path / "copy", "--verify", "--device", "cpu")
    assert "largest relative difference" in out and "positions" not in out and "distributions" not in out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--to", "onnx", "--out", "x"), "there is no format onnx: use hf or gguf"),
        (("--to", "gguf", "--out", "x"), "needs a file whose name ends in .gguf"),
        (("--to", "hf", "--out", "x", "--dtype", "q4_0"), "hf cannot be written in q4_0"),
        (("--to", "hf", "--out", "/"), "/ exists and holds no model, so it is not replaced"),
        (("--to", "hf", "--out", __file__), "test_export.py exists and holds no model, so it is not replaced"),
        (("--to", "gguf"), "Missing option '--out'"),
    ],
)
def test_what_is_refused_is_said_in_one_line(
    words: tuple[str, ...],
    answer: str,
    directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(directory), *words, "--device", "cpu", "--quiet"]) == 2
    said = capsys.readouterr()
    assert answer in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "answer"),
    [("bert", "to be a bert: head must be none (is lm); or save it"), ("t5", "this is an encoder-decoder: save it")],
)
def test_only_what_stands_against_a_model_of_its_kind_is_said(
    family: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model", family)
    said = refusal(capsys, "export", model, "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert answer in said and "decoder (is" not in said and said.endswith("as a Hugging Face directory (--to hf)")
