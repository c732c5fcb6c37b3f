"""`trivium generate` of every kind of model."""

from __future__ import annotations

import subprocess
import sys
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


# What is not needed for a first token, and what each of it would cost: torch's compiler brings sympy, about a second.
NOT_NEEDED = ("torch._dynamo", "sympy", "matplotlib", "jinja2", "psutil", "rich", "transformers")
GENERATE = """
import sys
{before}
from trivium.cli import main
status = main(["generate", {model!r}, "--prompt", "def wrap", "--max-new-tokens", "2"])
sys.stderr.write("loaded: " + " ".join(name for name in {names} if name in sys.modules))
sys.exit(status)
"""


def loaded(model: Path, before: str = "") -> list[str]:
    """Which of `NOT_NEEDED` a process has imported once it has generated text."""
    code = GENERATE.format(model=str(model), names=NOT_NEEDED, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stderr.rpartition("loaded: ")[2].split()


def test_it_starts_without_what_it_does_not_need(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    assert loaded(model) == []
    # The control: a table of tokens that is drawn on the meta device, as torch does it, is seen.
    drawn = 'import torch\nwith torch.device("meta"): torch.nn.Embedding(3, 4)'
    assert {"torch._dynamo", "sympy"} <= set(loaded(model, drawn))
