"""The verdict says what happened, and does not flatter."""

from __future__ import annotations

from pathlib import Path

from trivium.report.run_data import Curve, RunData
from trivium.report.verdict import sentence

HERE = Path("run")
BASELINES = {"xz_bits_per_byte": 1.84, "unigram_bits_per_byte": 2.74}


def verdict(**summary: object) -> str:
    return sentence(RunData(HERE, summary={"status": "finished", "steps": 1200, "seconds": 90, **summary}))


def test_better_than_both_baselines() -> None:
    assert verdict(held_out={"bits_per_byte": 1.08}, baselines=BASELINES) == (
        "Trained to the end after 1,200 steps and 1 min 30 s. Held-out text costs it 1.08 bits per byte, "
        "below xz -9 (1.84) and the unigram entropy of its tokens (2.74)."
    )


def test_worse_than_a_baseline_is_said() -> None:
    text = verdict(held_out={"bits_per_byte": 2.1}, baselines=BASELINES)
    assert "below the unigram entropy of its tokens (2.74), but not yet below xz -9 (1.84)." in text
    text = verdict(held_out={"bits_per_byte": 3.0}, baselines=BASELINES)
    assert "3.00 bits per byte, not yet below xz -9 (1.84) or the unigram" in text
    assert "below xz -9 (1.84) and" not in text


def test_without_held_out_text() -> None:
    assert "has not been measured on held-out text" in verdict(final_loss=2.5)


def test_failed_and_unfinished() -> None:
    assert verdict(status="failed", error="the loss is NaN.").startswith("Failed after 1,200 steps: the loss is NaN.")
    assert "trivium resume" in verdict(status="stopped")
    assert sentence(RunData(HERE)) == "Not finished: no step has been logged yet."
    live = RunData(
        HERE, recipe={"training": {"steps": 900}}, last_step=41, curves={"loss": Curve((40, 41), (5.0, 4.5))}
    )
    assert sentence(live).startswith(
        "Not finished: step 41 of 900 is the last one logged. Its last training loss is 4.50"
    )
