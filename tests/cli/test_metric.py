"""`trivium metric`: of a model and of predictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import MEMORY, refusal, result, saved, shown


def test_perplexity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("def wrap(text): return text\n" * 20)
    model = saved(tmp_path / "decoder", "llama")
    found = result(capsys, "metric", "perplexity", model, "--file", file)
    assert found.keys() == {*MEMORY, "perplexity", "bits_per_byte", "nll", "num_tokens"}
    for family, reason in (("bert", "a masked model has no perplexity"), ("t5", "without a source")):
        other = saved(tmp_path / family, family)
        assert reason in refusal(capsys, "metric", "perplexity", other, "--file", file)
    headless = saved(tmp_path / "headless", "bert", head="none")
    assert "perplexity needs a decoder" in refusal(capsys, "metric", "perplexity", headless, "--file", file)


def test_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, right = tmp_path / "predictions", tmp_path / "right"
    predictions.write_text("yes\nno \nyes\nmaybe\n")
    right.write_text("yes\nno\nno\nyes\n")
    files = ("--predictions", predictions, "--references", right)
    found = result(capsys, "metric", "classification", *files)
    assert found["accuracy"] == found["f1_micro"] == 0.5
    assert found["f1_macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["f1_weighted"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # 2 right of 4; predicted 2, 1, 1 and actual 2, 2, 0 of yes, no, maybe
    assert found["matthews_correlation"] == pytest.approx((2 * 4 - 6) / ((16 - 6) * (16 - 8)) ** 0.5)
    assert found["per_class"]["no"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert "f1 of maybe" in shown(capsys, "metric", "classification", *files)
    right.write_text("yes\n")
    assert "has 1 lines and" in refusal(capsys, "metric", "classification", *files)
    predictions.write_text("")
    right.write_text("")
    assert "is empty" in refusal(capsys, "metric", "classification", *files)


def test_rouge_and_bleu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, right, also = (tmp_path / name for name in ("predictions", "right", "also"))
    predictions.write_text("the cat sat on the mat\n\na dog runs through the deep snow\n")
    right.write_text("the cat sat on a mat\nnothing\na dog runs through the deep snow\n")
    also.write_text("the cat sat on the mat\nnothing\nelse\n")
    files = ("--predictions", predictions, "--references", right)
    rouge = result(capsys, "metric", "rouge", *files)
    assert rouge["rouge1"]["fmeasure"] == pytest.approx((10 / 12 + 0 + 1) / 3)
    assert "rouge2" in shown(capsys, "metric", "rouge", *files)
    bleu = result(capsys, "metric", "bleu", *files)
    better = result(capsys, "metric", "bleu", *files, "--references", also)
    assert 0 < bleu["bleu"] < better["bleu"] <= 100
    also.write_text("one\n")
    assert "has 1 lines and" in refusal(capsys, "metric", "bleu", *files, "--references", also)
