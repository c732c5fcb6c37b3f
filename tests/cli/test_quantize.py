"""`trivium quantize` from the command line: the directory it writes, the cost it tells, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.small_models import TEXT, refusal, result, saved, shown
from trivium.checkpoints.bundle import load
from trivium.checkpoints.config_files import read_scheme
from trivium.cli import main
from trivium.quantization.schemes import FORMATS, scheme_for

FAMILIES = {"llama": "perplexity", "bert": "perplexity of hidden tokens", "t5": "target perplexity"}
FILES = {"config.json", "packed.safetensors", "tokenizer.json", "README.md", "quantization.json", "quantization.png"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: saved(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "some.txt"
    file.write_text(TEXT[:6000])
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_is_written_with_its_measured_cost(
    family: str, models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    found = result(capsys, "quantize", models[family], "--to", "int8", "--out", out, "--text", text, "--device", "cpu")
    assert found["model"] == str(out) and found["format"] == "int8"
    assert found["bytes"] < 0.5 * found["original_bytes"]
    measured = found["measured"]
    assert measured["quality"]["measure"] == FAMILIES[family] and 0 < measured["quality"]["kl"] < 0.1
    assert {path.name for path in out.iterdir()} >= FILES and read_scheme(out) == scheme_for("int8")
    assert json.loads((out / "quantization.json").read_text()) == measured
    assert (out / "quantization.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    assert f"{measured['quality']['kl']:.3g} nats a token" in card and "![What it costs](quantization.png)" in card
    assert "measured on some.txt" in card
    # The original is what it was, and the new one opens as any other.
    assert read_scheme(models[family]) is None and load(out).config == load(models[family]).config


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_written_as_asked(
    format: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    found = result(capsys, "quantize", models["llama"], "--to", format, "--out", out, "--no-measure")
    assert found["measured"] == {} and not (out / "quantization.json").exists()
    assert read_scheme(out) == (None if format in ("fp16", "bf16") else scheme_for(format))
    assert load(out).generate("The text", max_new_tokens=4).tokens


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_read_the_text_given(
    method: str, models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXT.split("\n\n")))
    words = ("quantize", models["llama"], "--to", "int4", "--no-measure", "--device", "cpu")
    weights = {}
    for name, more in {
        "nearest": (),
        "txt": ("--method", method, "--calibration", text),
        "jsonl": ("--method", method, "--calibration", rows),
    }.items():
        result(capsys, *words, *more, "--out", tmp_path / name)
        weights[name] = (tmp_path / name / "packed.safetensors").read_bytes()
    assert len(set(weights.values())) == 3  # each text leads to other codes
    assert read_scheme(tmp_path / "txt") == scheme_for("int4", method=method)


def test_group_size_and_what_is_kept_are_obeyed(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("quantize", models["llama"], "--no-measure", "--to", "nf4", "--group-size", "32")
    result(capsys, *words, "--keep", "*.down", "--keep", "embedding", "--out", tmp_path / "m")
    assert read_scheme(tmp_path / "m") == scheme_for("nf4", group_size=32, keep=("*.down", "embedding"))
    model = load(tmp_path / "m").model
    assert isinstance(model.stack.blocks[0].mlp.down, torch.nn.Linear)
    assert model.stack.blocks[0].mlp.up.matrix.group_size == 32


def test_for_people_the_cost_is_a_table(
    models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(capsys, "quantize", models["llama"], "--to", "int8", "--out", tmp_path / "m", "--text", text)
    lines = out.splitlines()
    assert re.match(r" +original +quantized$", lines[0]) and lines[-1] == str(tmp_path / "m")
    for start in ("size in memory", "perplexity", "KL from the original", "greedy text", "reading", "writing"):
        assert any(line.startswith(start) for line in lines), start
    assert re.search(r"perplexity .*\(.*%; 95 %: .* to .*\)", out)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--to", "int5"), "there is no format 'int5' to quantize to; did you mean int"),
        (("--to", "int8", "--group-size", "64"), "int8 has no groups"),
        (("--to", "int4", "--group-size", "48"), "group_size: must be one of 32, 64, 128"),
        (("--to", "nf4", "--method", "awq"), "method awq is for int8, int8_dynamic, int4, int4_asymmetric"),
        (("--to", "int4", "--method", "gptq", "--calibration", "nowhere.txt"), "nowhere.txt"),
        (("--to", "int8", "--text", "nowhere.txt"), "nowhere.txt"),
        (("--to", "int8", "--text", "{short}"), "the text has too few tokens; give a longer one"),
        (("--to", "int4", "--method", "gptq", "--calibration", "{short}"), "give more of it"),
        (("--to", "int8", "--keep", "nothing"), "keep: the model has no module nothing"),
        ((), "Missing option '--to'"),
    ],
)
def test_what_is_refused_is_said_in_one_line_and_writes_nothing(
    words: tuple[str, ...],
    answer: str,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a")
    monkeypatch.chdir(tmp_path)
    words = tuple(str(short) if word == "{short}" else word for word in words)
    assert answer in refusal(capsys, "quantize", models["llama"], *words, "--out", tmp_path / "m", "--quiet")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_models_and_places_that_do_not_do_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--to", "int8", "--no-measure", "--out")
    assert "nosuch" in refusal(capsys, "quantize", tmp_path / "nosuch", *words, tmp_path / "m")
    itself = refusal(capsys, "quantize", models["llama"], *words, models["llama"])
    assert itself.endswith("is the model itself, which is kept: choose another directory")
    assert read_scheme(models["llama"]) is None
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    taken = refusal(capsys, "quantize", models["llama"], *words, tmp_path / "full")
    assert "exists and holds no model, so it is not replaced" in taken
    result(capsys, "quantize", models["llama"], *words, tmp_path / "m")
    again = refusal(capsys, "quantize", tmp_path / "m", *words, tmp_path / "twice")
    assert "stored as int8, which cannot be quantized again (to int8): take the original model" in again
    assert not (tmp_path / "twice").exists()


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load(saved(tmp_path / "m", "llama"))
    with torch.no_grad():
        bundle.model.stack.blocks[1].mlp.down.weight[0, 0] = torch.nan
    bundle.save(tmp_path / "m")
    for format in ("int8", "int4", "bf16"):
        said = refusal(capsys, "quantize", tmp_path / "m", "--to", format, "--out", tmp_path / "q")
        assert "stack.blocks.1.mlp.down" in said and "holds NaN: it cannot be quantized" in said
    assert not (tmp_path / "q").exists()


def test_interrupted_it_leaves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    """Ctrl-C once the model is read, in a process of its own."""
    out, text = tmp_path / "out" / "m", tmp_path / "long.txt"
    out.parent.mkdir()
    text.write_text(TEXT * 40)
    command = [sys.executable, "-m", "trivium", "quantize", str(models["llama"]), "--to", "int8", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--text", str(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    while "comparing with the original" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)
    assert (process.returncode, rest[0]) == (130, "") and "Traceback" not in rest[1], said + rest[1]
    assert rest[1].endswith("trivium: interrupted\n")
    assert not list(out.parent.iterdir())
    # The control: undisturbed it writes the directory.
    assert subprocess.run([*command, "--no-measure"], capture_output=True, check=False).returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["m"]


def test_help_comes_without_torch_and_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ", ".join(FORMATS) in said and "--calibration" in said and "Examples:" in said
    code = "import sys; from trivium.cli import main; main(['quantize', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
