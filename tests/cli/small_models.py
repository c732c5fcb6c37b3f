"""A small saved model of each kind for the tests of verbs: untrained, with tokenizers learned from real text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from trivium.checkpoints.directory import save_model_directory
from trivium.cli import main
from trivium.families import FAMILIES
from trivium.models.build import build_model, initialise
from trivium.models.config import Head, ModelConfig
from trivium.tokenizer.bpe import Tokenizer

TEXT = Path(textwrap.__file__).read_text()
# What every verb that computes with a model says of memory.
MEMORY = {"planned_peak_bytes", "peak_bytes"}


def saved(folder: Path, family: str, *, head: Head = "lm", labels: Sequence[str] = (), chat: bool = True) -> Path:
    """A model directory of a random model of that family."""
    kind = FAMILIES[family].kind
    tokenizer = Tokenizer.train(texts=[TEXT], vocab_size=420, kind=kind)
    shape = {"vocab_size": tokenizer.vocab_size, "width": 32, "layers": 2, "heads": 4, "init_std": 0.2}
    config = ModelConfig(**{**shape, **FAMILIES[family].shape, "max_positions": 128})  # type: ignore[arg-type]
    if head != "lm":
        config = FAMILIES[family].with_head(config, head, tuple(labels))
    model = build_model(config)
    initialise(model, config, seed=1)
    if not chat:
        tokenizer = tokenizer.with_chat_template(None)
    save_model_directory(folder, model, config, tokenizer, family=family)
    return folder


def result(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """Run a command with --json and read its one object."""
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that is refused, and read its one line."""
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if line.startswith("trivium: ")]
    return line


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command without --json and read what it writes."""
    assert main([*map(str, words)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out
