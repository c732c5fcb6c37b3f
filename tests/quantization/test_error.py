"""Measures equal those of whole logits in fp64, are exactly nothing for equal models, and see shuffled scales."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from quantization.calibrated import CONFIGS, model_of, text_of
from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.quantization import error
from trivium.quantization.error import (
    ScoredRows,
    bootstrap_interval,
    compare,
    part_errors,
    results_alike,
    weight_errors,
)
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.quantize import quantize_model

KINDS = ["llama", "encoder, post-norm", "encoder-decoder"]


def rows_of(config: ModelConfig, batches: int = 4) -> list[ScoredRows]:
    """Random text, some of whose positions are not scored."""
    rows = []
    for number, batch in enumerate(text_of(config, batches=batches)):
        inputs = (batch,) if isinstance(batch, Tensor) else batch
        generator = torch.Generator().manual_seed(number)
        targets = torch.randint(-20, config.vocab_size, inputs[-1].shape, generator=generator)
        rows.append(ScoredRows(inputs, targets))
    return rows


def whole(original: Model, quantized: Model, rows: list[ScoredRows]) -> dict[str, float]:
    """The same from all logits at once, fp64."""
    sums = dict.fromkeys(("positions", "before", "after", "kl", "equal"), 0.0)
    with torch.no_grad():
        for some in rows:
            p, q = (model(*some.inputs).double().log_softmax(-1) for model in (original, quantized))
            mask = some.targets_BT >= 0
            targets = some.targets_BT[mask][:, None]
            sums["positions"] += len(targets)
            sums["before"] -= float(p[mask].gather(1, targets).sum())
            sums["after"] -= float(q[mask].gather(1, targets).sum())
            sums["kl"] += float((p[mask].exp() * (p[mask] - q[mask])).sum())
            sums["equal"] += float((p[mask].argmax(-1) == q[mask].argmax(-1)).sum())
    return {name: value / sums["positions"] for name, value in sums.items()}


def shuffled(model: Model) -> Model:
    """Seeded damage: the scales of each packed matrix in another order."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, PackedMatrix):
            order = torch.randperm(module.scales.shape[0], generator=torch.Generator().manual_seed(0))
            module.scales = module.scales[order].contiguous()
    return model


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_sums_are_those_of_whole_logits(name: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]
    original, quantized = model_of(config), quantize_model(model_of(config), format)
    rows = rows_of(config)
    expected = whole(original, quantized, rows)
    monkeypatch.setattr(error, "LOGITS_PER_CHUNK", 7 * config.vocab_size)  # several chunks a batch
    found = compare(original, quantized, rows)
    assert found.nll_original == pytest.approx(expected["before"], rel=1e-5)
    assert found.nll_quantized == pytest.approx(expected["after"], rel=1e-5)
    assert found.kl == pytest.approx(expected["kl"], rel=1e-3, abs=1e-7)
    assert found.agreement == pytest.approx(expected["equal"])
    assert found.positions == sum(int((some.targets_BT >= 0).sum()) for some in rows) and found.rows == 8
    assert found.interval is not None and found.interval[0] <= found.change <= found.interval[1]


@pytest.mark.parametrize("name", KINDS)
def test_a_model_against_itself_costs_exactly_nothing(name: str) -> None:
    config = CONFIGS[name]
    model = model_of(config)
    found = compare(model, deepcopy(model), rows_of(config))
    assert (found.change, found.kl, found.agreement, found.interval) == (0.0, 0.0, 1.0, (0.0, 0.0))
    errors = part_errors(model, deepcopy(model), text_of(config))
    assert {part.error for part in errors} == {0.0}


@pytest.mark.parametrize("name", KINDS)
def test_shuffled_scales_raise_every_measure(name: str) -> None:
    """Broken control: right codes with the scales of other rows."""
    config = CONFIGS[name]
    original, quantized, rows = model_of(config), quantize_model(model_of(config), "int8"), rows_of(config)
    broken = shuffled(quantized)
    good, bad = compare(original, quantized, rows), compare(original, broken, rows)
    assert bad.kl > 20 * good.kl and bad.agreement < good.agreement - 0.1
    fine, damaged = (weight_errors(original, model) for model in (quantized, broken))
    assert list(fine) == list(damaged) and all(damaged[name] > 5 * fine[name] for name in fine)
    parts, worse = (part_errors(original, model, text_of(config)) for model in (quantized, broken))
    assert all(b.error > 3 * a.error for a, b in zip(parts, worse, strict=True))


def test_parts_are_judged_each_by_itself() -> None:
    """A block that is far off leaves the errors of the blocks after it as they were."""
    config = CONFIGS["encoder-decoder"]
    original, text = model_of(config), text_of(config)
    quantized = quantize_model(model_of(config), "int8")
    before = part_errors(original, quantized, text)
    names = [part.name for part in before]
    encoder = [f"encoder.blocks.{layer}.{part}" for layer in range(2) for part in ("attention", "mlp")]
    decoder = [f"decoder.blocks.{layer}.{part}" for layer in range(2) for part in ("attention", "cross", "mlp")]
    assert names == encoder + decoder
    quantized.decoder.blocks[0].cross.value.scales *= 2
    after = part_errors(original, quantized, text)
    changed = [a.name for a, b in zip(before, after, strict=True) if a.error != b.error]
    assert changed == ["decoder.blocks.0.cross", "decoder.blocks.0.mlp"]  # what it reads has changed with it


def test_the_error_of_a_part_is_that_of_its_output() -> None:
    config = CONFIGS["llama"]
    original, text = model_of(config), text_of(config, batches=1)
    quantized = deepcopy(original)
    quantized.stack.blocks[1].mlp.down.weight.data *= 1.25
    errors = {part.name: part.error for part in part_errors(original, quantized, text)}
    assert errors["stack.blocks.1.mlp"] == pytest.approx(0.25, rel=1e-5)
    assert sum(errors.values()) == errors["stack.blocks.1.mlp"]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_model_in_half_precision_is_compared_with_one_in_fp32(name: str) -> None:
    config = CONFIGS[name]
    original, half, text = model_of(config), model_of(config, torch.bfloat16), text_of(config)
    errors = part_errors(original, half, text)
    assert min(part.error for part in errors) > 0 and max(part.error for part in errors) < 0.1
    found = compare(original, half, rows_of(config))
    assert 0 < found.kl < 0.05 * found.nll_original


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        counts = torch.randint(50, 100, (40,), generator=generator)
        sums = counts * (0.3 + torch.randn(40, generator=generator) * 0.5)
        low, high = bootstrap_interval(sums, counts, seed=trial) or (0.0, 0.0)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199
    assert bootstrap_interval(torch.ones(1), torch.ones(1)) is None
    again = [bootstrap_interval(torch.arange(9.0), torch.ones(9), seed=3) for _ in range(2)]
    assert again[0] == again[1]


def test_nothing_to_score_and_broken_models_are_refused() -> None:
    config = CONFIGS["llama"]
    model = model_of(config)
    (ids,) = text_of(config, batches=1)
    with pytest.raises(UserError, match="no token to predict"):
        compare(model, model, [ScoredRows((ids,), torch.full_like(ids, -1))])
    with pytest.raises(UserError, match="no token to predict"):
        compare(model, model, [])
    broken = deepcopy(model)
    broken.stack.norm.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        compare(model, broken, rows_of(config))


def test_results_of_other_heads_are_compared() -> None:
    base = CONFIGS["encoder, post-norm"]
    for head, labels in (("none", ()), ("classification", ("a", "b", "c")), ("scalar", ())):
        config = base.changed(head=head, labels=labels)
        original = model_of(config)
        quantized, text = quantize_model(model_of(config), "int8"), text_of(config)
        alike = results_alike(original, quantized, text)
        assert 0 < alike.error < 0.3
        assert (alike.agreement is not None) == (head == "classification")
        assert results_alike(original, shuffled(quantized), text).error > 2 * alike.error
        assert results_alike(original, original, text).error == 0
