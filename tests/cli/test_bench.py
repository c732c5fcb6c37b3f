"""`trivium bench` of every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.small_models import refusal, result, saved, shown
from trivium.cli import bench

FEW = ("--prompt-tokens", 12, "--new-tokens", 4, "--repeats", 1, "--threads", 1)
KEYS = {
    *("model", "quantize", "dtype", "kv_cache", "device", "threads", "step", "kernels", "load_seconds"),
    *("weights_bytes", "loaded_peak_bytes", "peak_bytes", "machine", "runs"),
}


@pytest.fixture(autouse=True)
def _little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MACHINE_SECONDS", 0.1)


def test_a_decoder_dense_and_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", "llama")
    found = result(capsys, "bench", model, "--batch", "1,3", *FEW)
    assert found.keys() >= KEYS and found["dtype"] == "float32" and found["threads"] == 1
    assert [run["rows"] for run in found["runs"]] == [1, 3]
    for run in found["runs"]:
        pace = run["decode_tokens_per_second"]
        assert 0 < pace["low"] <= pace["median"] <= pace["high"]
        assert run["decode_share"] == pytest.approx(pace["median"] / run["decode_limit"])
        limit = run["rows"] * 1e9 * found["machine"]["read_gb_per_s"] / run["decode_bytes"]
        assert run["decode_limit"] == pytest.approx(limit)
        assert run["prefill_share"] > 0 and run["first_token_seconds"]["median"] > 0
    packed = result(
        capsys, "bench", model, "--batch", 1, "--quantize", "int8", "--dtype", "bf16", "--kv-cache", "int8", *FEW
    )
    assert packed["weights_bytes"] < 0.4 * found["weights_bytes"] and packed["dtype"] == "bfloat16"
    assert packed["runs"][0]["decode_bytes"] < 0.4 * found["runs"][0]["decode_bytes"]


@pytest.mark.parametrize(("family", "pace"), [("t5", "tokens/s"), ("bert", "writes nothing")])
def test_other_kinds(family: str, pace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "bench", saved(tmp_path / "model", family), "--batch", 2, *FEW)
    assert "weights" in text and "GB/s" in text and "% of" in text and pace in text


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", "llama")
    for batch in ("", "0", "1,x", "-1", "99999"):
        assert "give numbers from 1 to 1024" in refusal(capsys, "bench", model, "--batch", batch)
    assert "128 positions" in refusal(capsys, "bench", model, "--quiet")
    assert "did you mean int8" in refusal(capsys, "bench", model, "--quantize", "int88", "--quiet")
    assert "kv_cache" in refusal(capsys, "bench", model, "--kv-cache", "fp4", "--quiet")
    assert "use fp32, bf16 or fp16" in refusal(capsys, "bench", model, "--dtype", "fp8", "--quiet")
