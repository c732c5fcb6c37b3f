"""`trivium tokenizer train --kind`: the tokenizer of the kind of model it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium.cli import main
from trivium.tokenizer.bpe import Tokenizer


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The teacher sees the student. " * 50)
    out = tmp_path / "tokenizer"
    arguments = ["tokenizer", "train", str(text), "--vocab-size", "380", "--kind", kind, "--out", str(out), "--json"]
    assert main(arguments) == 0
    fingerprint = json.loads(capsys.readouterr().out)["fingerprint"]
    assert fingerprint == Tokenizer.train([text], vocab_size=380, kind=kind).fingerprint
    assert (Tokenizer.load(out).mask_id is None) == (kind == "decoder")


def test_an_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", __file__, "--vocab-size", "380", "--kind", "bert", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "encoder-decoder" in message and len(message.strip().splitlines()) == 1 and not out.exists()
