"""`trivium seq2seq`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown
from trivium.checkpoints.bundle import load
from trivium.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder-decoder") / "model", "bart")


def test_beams_and_rules(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("seq2seq", model, "def wrap(text, width)", "--max-new-tokens", 20)
    greedy = result(capsys, *command)
    assert greedy.keys() == {*MEMORY, "text", "tokens", "finish_reason", "tokens_per_second"}
    assert len(greedy["tokens"]) <= 20 and greedy["finish_reason"] in ("length", "stop")
    assert shown(capsys, *command).rstrip("\n") == greedy["text"].rstrip("\n")
    beams = result(capsys, *command, "--num-beams", 4, "--length-penalty", 0.5, "--no-repeat-ngram-size", 2)
    assert beams["tokens"] != greedy["tokens"]
    pairs = list(zip(beams["tokens"], beams["tokens"][1:], strict=False))
    assert len(set(pairs)) == len(pairs)
    settings = {"num_beams": 4, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "max_new_tokens": 20}
    assert load(model).seq2seq("def wrap(text, width)", **settings).tokens == beams["tokens"]


def test_gaps_can_be_told_apart(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that writes nothing but one sentinel: it stands in the text, shown and as JSON."""
    bundle = load(model)
    bias = bundle.model.state_dict()["head.bias"]
    bias[bundle.tokenizer.sentinel_ids[1]] = 1e4
    bundle.save(model.parent / "gaps")
    command = ("seq2seq", model.parent / "gaps", "def <extra_id_0>", "--max-new-tokens", 2)
    assert result(capsys, *command)["text"] == "<extra_id_1><extra_id_1>"
    assert shown(capsys, *command) == "<extra_id_1><extra_id_1>\n"
    bias[bundle.tokenizer.pad_id] = 2e4  # the control: other special tokens are no text
    assert bundle.seq2seq("def <extra_id_0>", max_new_tokens=2).text == ""
    bundle.save(model.parent / "silent")
    for quiet, noted in ((), True), (("--quiet",), False):
        assert main(["seq2seq", str(model.parent / "silent"), "def", "--max-new-tokens", "2", *quiet]) == 0
        said = capsys.readouterr()
        assert said.out == "\n" and ("(the text is empty)" in said.err) == noted


def test_refusals(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "num_beams" in refusal(capsys, "seq2seq", model, "text", "--num-beams", 0)
    assert "tokens with the special ones" in refusal(capsys, "seq2seq", model, "é" * 200)
    assert "decoder" in refusal(capsys, "seq2seq", saved(tmp_path / "decoder", "llama"), "text")
