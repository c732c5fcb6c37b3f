"""What a model is not for, and what cannot fit, is refused by its config: its weights are not even read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.small_models import refusal, result, saved
from trivium.cli import main
from trivium.planner.history import history_report

WRONG = {
    "bert": (
        (("metric", "perplexity", "MODEL", "--file", "FILE"), "a masked model has no perplexity"),
        (("generate", "MODEL", "--prompt", "a"), "generation needs a decoder or an encoder-decoder"),
        (("seq2seq", "MODEL", "a"), "seq2seq needs an encoder-decoder"),
        (("chat", "MODEL", "--prompt", "a"), "chat needs a decoder"),
        (("classify", "MODEL", "a"), "classification needs a model with a classification head"),
    ),
    "llama": (
        (("fill-mask", "MODEL", "a [MASK]"), "filling a mask needs an encoder"),
        (("seq2seq", "MODEL", "a"), "seq2seq needs an encoder-decoder"),
    ),
    "t5": (
        (("metric", "perplexity", "MODEL", "--file", "FILE"), "has no perplexity without a source"),
        (("fill-mask", "MODEL", "a [MASK]"), "filling a mask needs an encoder"),
        (("chat", "MODEL", "--prompt", "a"), "chat needs a decoder"),
    ),
}


@pytest.mark.parametrize("family", list(WRONG))
def test_refused_without_reading_the_weights(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = saved(tmp_path / "model", family), tmp_path / "text.txt"
    text.write_text("some text")
    (model / "model.safetensors").unlink()
    places = {"MODEL": str(model), "FILE": str(text)}
    for words, reason in WRONG[family]:
        assert reason in refusal(capsys, *(places.get(word, word) for word in words))
    # The control: what it is for goes on to the weights, and misses them.
    right = {"bert": ("fill-mask", "[MASK]"), "llama": ("generate", "--prompt", "a"), "t5": ("seq2seq", "a")}[family]
    assert "no weights" in refusal(capsys, right[0], model, *right[1:])


# The shape of a Llama 2 of 70e9 parameters: 276 GB in fp32, which no machine that runs tests has.
LARGE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
USES_OF_A_DECODER = (
    ("generate", "MODEL", "--prompt", "a"),
    ("chat", "MODEL", "--prompt", "a"),
    ("metric", "perplexity", "MODEL", "--file", "FILE"),
    ("embed", "MODEL", "a"),
)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a large model, without weights; a history of its own."""
    monkeypatch.setenv("TRIVIUM_HOME", str(tmp_path / "home"))
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(LARGE))
    (tmp_path / "text.txt").write_text("some text")
    return tmp_path / "large"


@pytest.mark.parametrize("words", USES_OF_A_DECODER, ids=lambda words: words[0])
def test_what_cannot_fit_is_refused_before_the_weights_are_read(
    words: tuple[str, ...], large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(large), "FILE": str(large.parent / "text.txt")}
    command = [places.get(word, word) for word in words]
    line = refusal(capsys, *command)
    assert "nothing was begun" in line and "available" in line and "--ignore-plan" in line
    assert "weights 2" in line  # its main part by name, some 276 GB
    # The control: told to go on, it comes to the weights, and misses them.
    assert "no weights" in refusal(capsys, *command, "--ignore-plan")
    assert history_report()["runs"] == []


def test_packed_weights_are_what_would_help(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "generate", large, "--prompt", "a")
    assert "(1) --quantize int" in line


def test_the_plan_is_stated_measured_and_kept(large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(tmp_path / "small", "llama")
    assert main(["generate", str(small), "--prompt", "def wrap", "--max-new-tokens", "4", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    (stated,) = [line for line in said.err.splitlines() if line.startswith("planned memory: ")]
    assert "weights" in stated and "available" in stated
    report = history_report()
    (run,) = report["runs"]
    assert run["planned_bytes"] == found["planned_peak_bytes"] and run["peak_bytes"] == found["peak_bytes"]
    assert (run["stage"], run["model"], run["kind"]) == ("generate", str(small), "decoder")
    result(capsys, "embed", small, "some text", "--quiet")
    assert [run["stage"] for run in history_report()["runs"]] == ["generate", "embed"]


def test_packed_while_it_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(tmp_path / "small", "llama")
    command = ("generate", small, "--prompt", "def wrap", "--max-new-tokens", 4)
    plain, packed = result(capsys, *command), result(capsys, *command, "--quantize", "int8")
    assert packed["planned_peak_bytes"] <= plain["planned_peak_bytes"] and len(packed["tokens"]) == 4
    assert "no format" in refusal(capsys, *command, "--quantize", "int9")
