"""`trivium generate` of every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generate(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", family)
    command = ("generate", model, "--prompt", "def wrap", "--max-new-tokens", 6)
    found = result(capsys, *command)
    assert (
        found.keys() == {*MEMORY, "text", "tokens", "finish_reason", "tokens_per_second"} and len(found["tokens"]) <= 6
    )
    assert shown(capsys, *command) == found["text"].rstrip("\n") + "\n"
    beams = result(capsys, *command, "--num-beams", 3, "--no-repeat-ngram-size", 2)
    assert 1 <= len(beams["tokens"]) <= 6
    sampled = [result(capsys, *command, "--temperature", 1.5, "--seed", seed)["tokens"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert "set temperature=0, or num_beams=1" in refusal(capsys, *command, "--num-beams", 3, "--temperature", 1)


def test_an_encoder_writes_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "encoder" in refusal(capsys, "generate", saved(tmp_path / "model", "bert"), "--prompt", "text")
