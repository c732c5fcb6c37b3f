"""Encoders and encoder-decoders are shown by what they are measured by, and never by bits per byte."""

from __future__ import annotations

from pathlib import Path

from trivium.report.page import render
from trivium.report.run_data import Curve, RunData
from trivium.report.verdict import sentence

ENCODER = RunData(
    Path("run"),
    summary={
        "status": "finished",
        "steps": 100,
        "model": "run/model",
        "model_facts": {"kind": "encoder"},
        "held_out": {"masked_accuracy": 0.415, "masked_loss": 2.9, "num_targets": 5000},
        "baselines": {"commonest_token_accuracy": 0.06},
        "samples": [{"prompt": "import [MASK]", "text": "import os", "truth": "import sys"}],
    },
    curves={"held_out_accuracy": Curve((50, 100), (0.2, 0.415))},
)
TRANSLATOR = RunData(
    Path("run"),
    summary={
        "status": "finished",
        "steps": 100,
        "model": "run/model",
        "model_facts": {"kind": "encoder-decoder"},
        "held_out": {"target_accuracy": 0.6, "target_loss": 2.0, "bleu_greedy": 21.5, "bleu_beam": 23.25},
    },
    curves={"held_out_bleu": Curve((50, 100), (9.0, 21.5)), "held_out_accuracy": Curve((50, 100), (0.5, 0.6))},
)


def test_an_encoder_fills_masks() -> None:
    assert "It fills 41.5 % of the held-out masks rightly; always giving the commonest token would fill 6.0 %." in (
        sentence(ENCODER)
    )
    page = render(ENCODER)
    assert "41.5 %" in page and "The truth:" in page and "import sys" in page
    assert "trivium fill-mask run/model" in page and "AutoModelForMaskedLM" in page
    assert "Perplexity" not in page and "AutoModelForCausalLM" not in page


def test_a_translator_has_bleu_over_time() -> None:
    assert "BLEU 21.5 greedily, 23.2 by beam search" in sentence(TRANSLATOR)
    page = render(TRANSLATOR)
    assert "BLEU of held-out pairs over the steps" in page and "9.0 at first, 21.5 at last" in page
    assert "trivium seq2seq run/model" in page and "AutoModelForSeq2SeqLM" in page


def test_without_measurement_it_says_so() -> None:
    bare = RunData(Path("run"), summary={"model_facts": {"kind": "encoder"}})
    assert "has not been measured on held-out text" in render(bare)
