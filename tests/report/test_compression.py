"""What quantization costs: nothing for the model itself, more with damaged scales; for all kinds, in plain JSON."""

from __future__ import annotations

import json
import textwrap
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.small_models import saved
from trivium.checkpoints.bundle import Bundle, load
from trivium.errors import UserError
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.quantize import quantize_model
from trivium.report.compression import compression_report, compression_table, scored_rows
from trivium.report.compression_plots import compression_plot, label

TEXT = Path(textwrap.__file__).read_text()
FAMILIES = {"llama": "perplexity", "bert": "perplexity of hidden tokens", "t5": "target perplexity"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A small model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    return {family: load(saved(folder / family, family)) for family in FAMILIES}


def quantized(bundle: Bundle, format: str) -> Bundle:
    return replace(bundle, model=quantize_model(deepcopy(bundle.model), format))


def report_of(original: Bundle, other: Bundle, **options: Any) -> dict[str, Any]:
    return compression_report(original, other, TEXT, **{"windows": 8, "window_tokens": 64, "prompts": 2, **options})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_kind_has_a_report(bundles: dict[str, Bundle], family: str) -> None:
    original = bundles[family]
    report = report_of(original, quantized(original, "int8"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["scheme"]["format"] == "int8"
    assert report["bytes"]["quantized"] < 0.5 * report["bytes"]["original"]
    assert report["windows"] == 8
    quality = report["quality"]
    assert quality["measure"] == FAMILIES[family]
    assert 0 < quality["kl"] < 0.1 and quality["agreement"] > 0.8
    assert quality["perplexity_interval"][0] <= quality["perplexity_change"] <= quality["perplexity_interval"][1]
    assert min(report["parts"].values()) > 0 and max(report["parts"].values()) < 0.1
    assert min(report["weights"].values()) > 0 and max(report["weights"].values()) < 0.02
    writes = family != "bert"
    assert (report["greedy"] is not None) == writes and set(report["speed"]) == {"reading", *["writing"] * writes}
    table = compression_table(report)
    assert {len(row) for row in table} == {3} and all(isinstance(cell, str) for row in table for cell in row)
    assert FAMILIES[family] in [row[0] for row in table]


@pytest.mark.parametrize("format", ["bf16", "int8_dynamic", "int4_asymmetric", "nf4"])
def test_every_format_has_a_report(bundles: dict[str, Bundle], format: str) -> None:
    report = report_of(bundles["llama"], quantized(bundles["llama"], format), prompts=0)
    assert 0 < report["quality"]["kl"] < 0.3
    assert 0 < max(report["parts"].values()) < 0.5
    assert bool(report["weights"]) == (format != "bf16")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_against_itself_costs_exactly_nothing(bundles: dict[str, Bundle], family: str) -> None:
    original = bundles[family]
    report = report_of(original, replace(original, model=deepcopy(original.model)), timed=False)
    assert report["speed"] is None
    quality, greedy = report["quality"], report["greedy"]
    assert (quality["nll_change"], quality["nll_interval"], quality["kl"], quality["agreement"]) == (0, [0, 0], 0, 1)
    assert report["bytes"]["share"] == 1 and report["scheme"] is None
    assert set(report["parts"].values()) == {0.0} and report["weights"] == {}
    if greedy is not None:
        assert (greedy["equal"], greedy["whole"], greedy["first_difference"]) == (1.0, greedy["prompts"], None)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_known_of_the_original_is_not_found_again(bundles: dict[str, Bundle], family: str) -> None:
    original, known = bundles[family], {}
    others = [quantized(original, format) for format in ("int8", "int4")]
    alone = [report_of(original, other, timed=False) for other in others]
    assert [report_of(original, other, timed=False, known=known) for other in others] == alone
    # It is what the second report is made from: the control, with other states.
    known["states"] = [states + 1 for states in known["states"]]
    assert report_of(original, others[1], timed=False, known=known) != alone[1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shuffled_scales_cost_more(bundles: dict[str, Bundle], family: str) -> None:
    """Broken control."""
    original = bundles[family]
    fine, broken = quantized(original, "int8"), quantized(original, "int8")
    for module in broken.model.modules():
        if isinstance(module, PackedMatrix):
            module.scales = module.scales.roll(1, 0).contiguous()
    good, bad = (report_of(original, other, prompts=0) for other in (fine, broken))
    assert bad["quality"]["kl"] > 10 * good["quality"]["kl"]
    assert bad["quality"]["agreement"] < good["quality"]["agreement"]
    assert all(bad["parts"][name] > good["parts"][name] for name in good["parts"])


def test_a_decoder_is_scored_on_every_token_once(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["llama"]
    ids = bundle.tokenizer.encode(TEXT)
    rows = scored_rows(bundle, TEXT, 10**6, 64)
    targets = torch.cat([some.targets_BT.flatten() for some in rows]).tolist()
    assert targets == ids[: len(ids) // 64 * 64]
    for some in rows:
        assert torch.equal(some.inputs[0][:, 1:], some.targets_BT[:, :-1])
    short = scored_rows(bundle, "a few words only", 8, 64)
    assert len(short) == 1 and short[0].targets_BT.shape[1] == len(bundle.tokenizer.encode("a few words only"))


def test_the_tokens_hidden_from_an_encoder_are_always_the_same(bundles: dict[str, Bundle]) -> None:
    once, again = (scored_rows(bundles["bert"], TEXT, 4, 64) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0]) and torch.equal(a.targets_BT, b.targets_BT)
        assert 0.1 < float((a.targets_BT >= 0).float().mean()) < 0.2
    assert not torch.equal(once[0].inputs[0][0], once[0].inputs[0][1])


def test_an_encoder_decoder_is_scored_on_the_window_after_its_source(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["t5"]
    (rows, *_) = scored_rows(bundle, TEXT, 4, 64)
    source, given = rows.inputs
    wrapped = [*source[0].tolist(), *rows.targets_BT[0].tolist()]
    end = bundle.tokenizer.eos_id
    assert [token for token in wrapped if token != end] == bundle.tokenizer.encode(TEXT)[: len(wrapped) - 2]
    assert given[0, 0] == bundle.config.decoder_start_id and torch.equal(given[:, 1:], rows.targets_BT[:, :-1])


def test_heads_without_token_scores_are_compared_by_their_results(tmp_path: Path) -> None:
    original = load(saved(tmp_path / "classifier", "bert", head="classification", labels=["a", "b"]))
    report = report_of(original, quantized(original, "int8"))
    assert report["quality"]["measure"] == "results" and 0 < report["quality"]["error"] < 0.2
    assert report["quality"]["agreement"] == 1.0 and report["greedy"] is None
    assert [row[0] for row in compression_table(report)][1:3] == ["error of the results", "same class"]
    assert compression_plot(report).startswith(b"\x89PNG")


def test_the_plot_is_always_the_same_and_names_what_it_shows(bundles: dict[str, Bundle]) -> None:
    original = bundles["t5"]
    reports = [report_of(original, quantized(original, name), prompts=0) for name in ("int8", "int4")]
    plot = compression_plot(*reports)
    assert plot.startswith(b"\x89PNG") and plot == compression_plot(*reports)
    assert plot != compression_plot(*reports[::-1])
    assert [label(report) for report in reports] == ["int8", "int4, 32"]
    method = {"scheme": {"format": "int4", "group_size": 128, "method": "gptq"}}
    assert label(method) == "int4, 128, gptq"


def test_too_little_text_is_refused(bundles: dict[str, Bundle]) -> None:
    for family, bundle in bundles.items():
        with pytest.raises(UserError, match="too few tokens"):
            compression_report(bundle, bundle, "", prompts=0)
        assert family in FAMILIES
