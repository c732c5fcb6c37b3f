"""Plans are compared with real processes: a few small runs meet the bound, and what the benchmark says is right."""

from __future__ import annotations

import importlib
import io
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def planning(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("planning")


SHAPE = {"vocab_size": 2048, "width": 256, "layers": 4, "heads": 4, "threads": 1}
# What is run, and parts of the plan without which the bound is missed (holes are a share of activations).
RUNS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {"family": "decoder", "stage": "pretrain", "precision": "fp32", "rows": 8, "length": 192},
        ("activations_bytes", "allocator_bytes"),
    ),
    (
        {"family": "encoder", "stage": "pretrain", "precision": "bf16", "rows": 12, "length": 128},
        ("activations_bytes", "allocator_bytes"),
    ),
    (
        {"family": "decoder", "stage": "generate", "precision": "fp32", "rows": 48, "length": 192, "new_tokens": 8},
        ("kv_cache_bytes",),
    ),
]


@pytest.mark.parametrize(("load", "parts"), RUNS)
def test_a_real_process_keeps_to_its_plan(planning: ModuleType, load: dict[str, Any], parts: tuple[str, ...]) -> None:
    case = planning.Case(**{**SHAPE, **load})
    result = planning.run(case)
    assert abs(result["error"]) <= planning.WORST_BOUND, result
    # Broken control: a plan that forgets a part is seen.
    planned, measured = result["plan"]["peak_bytes"], result["measured_bytes"]
    forgotten = sum(result["plan"][part] for part in parts)
    assert abs((planned - forgotten) / measured - 1) > planning.WORST_BOUND, result


def fake_result(planned: int, measured: int, framework: int, accelerate: int) -> dict[str, Any]:
    return {
        "plan": {"peak_bytes": planned, "framework_bytes": framework},
        "measured_bytes": measured,
        "others": {"accelerate": accelerate, "factor_of_four": 2 * accelerate},
    }


def test_summary(planning: ModuleType) -> None:
    results = [fake_result(112, 100, 50, 25), fake_result(192, 200, 50, 150), fake_result(400, 400, 50, 350)]
    facts = planning.summary(results)
    assert facts["runs"] == 3 and facts["plan"]["below"] == 1
    assert facts["plan"]["median"] == pytest.approx(0.04) and facts["plan"]["worst"] == pytest.approx(0.12)
    assert facts["plan"]["worst_below"] == pytest.approx(0.04)
    assert facts["plan, framework left out"]["worst"] == pytest.approx(62 / 50 - 1)
    assert facts["accelerate"]["worst"] == pytest.approx(0.75)
    assert facts["accelerate, framework left out"]["worst"] == pytest.approx(0.5)
    assert facts["plan, framework left out"]["runs"] == 3
    little = planning.summary([*results, fake_result(55, 60, 50, 1)])
    assert little["plan"]["runs"] == 4 and little["plan, framework left out"]["runs"] == 3
    assert planning.keeps_the_bounds(facts)
    # Broken controls: one run too far off, and too many a little off.
    assert not planning.keeps_the_bounds(planning.summary([*results, fake_result(117, 100, 50, 25)]))
    assert not planning.keeps_the_bounds(planning.summary([fake_result(106, 100, 50, 25)] * 3))


def test_every_family_size_and_stage_is_there(planning: ModuleType) -> None:
    cases = planning.cases(1)
    kinds = {(case.family, case.width, case.precision, case.stage) for case in cases}
    stages = {"encoder": 3, "decoder": 4, "encoder-decoder": 4}
    expected = sum(3 * 2 * count for count in stages.values()) + 2 * 2  # and beams
    assert len(cases) == len(kinds) == expected >= 40
    largest = [case for case in cases if case.width == planning.SIZES["large"][1] and case.precision == "fp32"]
    plan_of = importlib.import_module("workers.planning_worker").plan_of
    plans = [plan_of(case) for case in largest if case.stage in ("pretrain", "checkpointing")]
    assert all(plan.peak_bytes > 3 * plan.framework_bytes for plan in plans)


def test_the_figures_are_those_of_the_command(planning: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate estimate-memory` prints for the same number of parameters; only its look-up is replaced."""
    estimate = pytest.importorskip("accelerate.commands.estimate")
    case = planning.case_of("decoder", "medium", "fp32", "pretrain", 1)
    size = planning.others(replace(case, stage="evaluate"))["factor_of_four"] // 4
    model = torch.nn.Sequential(torch.nn.Linear(size, 1, bias=False, device="meta"))
    monkeypatch.setattr(estimate, "create_empty_model", lambda *names, **options: model)
    with redirect_stdout(io.StringIO()) as said:
        dtypes = ["float32", "float16"]
        estimate.estimate_command(
            Namespace(model_name="any", library_name=None, trust_remote_code=False, dtypes=dtypes)
        )
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in said.getvalue().splitlines() if "float" in line
    ]
    for (dtype, _, stored, training), precision in zip(rows, ("fp32", "bf16"), strict=True):
        used, trained = (
            planning.others(replace(case, precision=precision, stage=stage))["accelerate"]
            for stage in ("evaluate", "pretrain")
        )
        assert (stored, training) == (estimate.convert_bytes(used), estimate.convert_bytes(trained)), dtype
