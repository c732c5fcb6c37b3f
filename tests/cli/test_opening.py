"""What a model is not for is refused by its config: its weights are not even read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import refusal, saved

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
