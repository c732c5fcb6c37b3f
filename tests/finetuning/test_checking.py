"""The pre-flight: a good recipe passes, and every seeded fault is found by the check that is meant for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.small_runs import base_model, recipe_for
from trivium.finetuning import run as module
from trivium.finetuning.checking import Report, check_recipe, narrow
from trivium.models.config import Kind
from trivium.models.counts import num_parameters
from trivium.peft import lora
from trivium.tokenizer.bpe import Tokenizer


def failed(report: Report) -> list[str]:
    """The checks that do not hold."""
    assert all(check.ok or (check.found and check.cure) for check in report.checks)
    return [check.name for check in report.checks if not check.ok]


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_good_recipe_passes_every_check(tmp_path: Path, kind: Kind) -> None:
    report = check_recipe(recipe_for(tmp_path, "run", kind))
    assert failed(report) == [], report
    assert len(report.checks) >= 8
    assert not (tmp_path / "run").exists(), "the run itself was not begun"


def test_the_narrow_copy_has_the_blocks_of_the_model(tmp_path: Path) -> None:
    from trivium.checkpoints.config_files import read_config

    _, config = read_config(base_model(tmp_path))
    wide = config.model_copy(update={"width": 1024, "mlp_width": 4096, "head_width": 256})
    assert num_parameters(narrow(wide)) < num_parameters(wide) / 20
    assert narrow(wide).layers == wide.layers and narrow(wide).vocab_size == wide.vocab_size


# ------------------------------------------------------------------------------------------------------- seeded faults


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "run", peft={"method": "lora", "targets": ["kwery"]})
    assert failed(check_recipe(recipe)) == ["two steps can be taken"]


def test_rows_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    report = check_recipe(recipe_for(tmp_path, "run", data={"train": [str(tmp_path / "bad.jsonl")]}))
    assert failed(report) == ["the rows can be read"]
    assert "bad.jsonl, row 1" in report.checks[-1].found


def test_an_end_that_is_never_learned(tmp_path: Path) -> None:
    """Every answer is longer than a row, so each is cut before its end."""
    rows = [{"prompt": f"tell {n}", "response": "word " * 200} for n in range(40)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_recipe(recipe_for(tmp_path, "run", data={"train": [str(tmp_path / "long.jsonl")]}))
    assert failed(report) == ["the end of an answer is learned"]


def test_an_adapter_that_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "scale_of", lambda *given: 0.0)
    names = failed(check_recipe(recipe_for(tmp_path, "run")))
    assert names == ["what was trained changes the result"]


def test_weights_that_get_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.trainable_model

    def with_a_stray_weight(*given: Any) -> Any:
        bundle, adapter = right(*given)
        bundle.model.stray = torch.nn.Parameter(torch.zeros(3))
        return bundle, adapter

    monkeypatch.setattr(module, "trainable_model", with_a_stray_weight)
    assert failed(check_recipe(recipe_for(tmp_path, "run"))) == ["two steps can be taken"]


def test_a_resume_that_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.training_source
    calls: list[int] = []

    def forgetful(*given: Any) -> Any:
        source = right(*given)
        calls.append(1)
        if len(calls) > 1:
            micro_batches: Callable[[int], Any] = source.micro_batches
            source.micro_batches = lambda step: micro_batches(step - 1)  # type: ignore[method-assign]
        return source

    monkeypatch.setattr(module, "training_source", forgetful)
    assert failed(check_recipe(recipe_for(tmp_path, "run"))) == ["a resumed run is the same run"]


def test_a_beginning_that_stands_twice() -> None:
    from trivium.finetuning.checking import _begins_once

    tokenizer = Tokenizer.train(texts=["a b c"] * 9, vocab_size=300, kind="encoder")
    assert tokenizer.bos_id is None or _begins_once([[tokenizer.bos_id, 5]], tokenizer).ok


def test_an_unknown_key_is_no_recipe(tmp_path: Path) -> None:
    from trivium.errors import UserError

    with pytest.raises(UserError, match="did you mean"):
        recipe_for(tmp_path, "run", peft={"method": "lora", "rnk": 4})
