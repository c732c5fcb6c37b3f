"""`trivium chat`, talked to through a pipe and in one turn."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("decoder") / "model", "llama")


def test_a_conversation_as_a_process(model: Path) -> None:
    """Turns, commands and the end, line by line on standard input."""
    said = "/system Be brief.\nHello!\n\nAnd now?\n/reset\nAgain?\n/exit\nnever said\n"
    words = [sys.executable, "-m", "trivium", "chat", model, "--max-new-tokens", "8", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, input=said, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.keys() == {*MEMORY, "text", "tokens", "finish_reason", "tokens_per_second", "messages"}
    roles = [message["role"] for message in found["messages"]]
    assert roles == ["system", "user", "assistant"] and found["messages"][1]["content"] == "Again?"
    assert found["messages"][0]["content"] == "Be brief." and found["messages"][2]["content"] == found["text"]


def test_answers_are_shown_as_lines(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = result(capsys, "chat", model, "--prompt", "Hello!", "--max-new-tokens", 8)
    assert shown(capsys, "chat", model, "--prompt", "Hello!", "--max-new-tokens", 8) == one["text"] + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n/wave\n/reset\nHello!\n"))
    assert shown(capsys, "chat", model, "--max-new-tokens", 8) == (one["text"] + "\n") * 2


def test_refusals(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = saved(tmp_path / "plain", "llama", chat=False)
    assert "no chat template" in refusal(capsys, "chat", plain, "--prompt", "Hello!")
    assert "use fill-mask" in refusal(capsys, "chat", saved(tmp_path / "encoder", "bert"), "--prompt", "Hello!")
    assert "context holds" in refusal(capsys, "chat", model, "--prompt", "é" * 300)
    assert "temperature" in refusal(capsys, "chat", model, "--prompt", "Hello!", "--temperature", -1)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "nothing was said" in refusal(capsys, "chat", model, "--json")
