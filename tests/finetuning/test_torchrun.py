"""Two real processes (gloo) fine-tune as one does: the same losses, the same ledger, the same adapter (R9, R11)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from finetuning.small_runs import base_model, recipe_for
from pretraining.small_runs import TWO_RANKS, finished
from trivium.config import dump_recipe
from trivium.finetuning.run import finetune
from trivium.training.log import read_log

TOLERANCE = 1e-6
# Rank 1 goes through the rows in an order of its own.
OTHER_ROWS_ON_RANK_1 = """
import os, sys
from trivium.cli import main
from trivium.finetuning import run
source = run.training_source
if os.environ["RANK"] == "1":
    run.training_source = lambda task, recipe, runtime: source(task, recipe.model_copy(update={"seed": 6}), runtime)
sys.exit(main())
"""


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_log(run / "metrics.jsonl") if "loss" in record]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    base_model(tmp_path, dropout=0.0)
    training = {"steps": 8, "evaluate_every_steps": 4, "save_every_steps": 8}
    recipe = recipe_for(tmp_path, "one", peft={"method": "lora", "rank": 4}, training=training)
    finetune(recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    words = ["finetune", str(path), "--quiet"]
    done = finished([*TWO_RANKS, "-m", "trivium", *words, f"run={tmp_path / 'two'}"])
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 8
    assert max(abs(a / b - 1) for a, b in zip(one, two, strict=True)) <= TOLERANCE
    general = [
        [r["general_bits_per_byte"] for r in read_log(tmp_path / run / "metrics.jsonl") if "general_bits_per_byte" in r]
        for run in ("one", "two")
    ]
    assert len(general[0]) == 3
    torch.testing.assert_close(torch.tensor(general[0]), torch.tensor(general[1]), rtol=1e-5, atol=0)
    adapters = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two")]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][name], rtol=1e-3, atol=1e-5)
    # Broken control: ranks that do not agree on the rows.
    script = tmp_path / "other_rows.py"
    script.write_text(OTHER_ROWS_ON_RANK_1)
    done = finished([*TWO_RANKS, str(script), *words, f"run={tmp_path / 'broken'}"])
    assert done.returncode == 0, done.stderr
    assert max(abs(a / b - 1) for a, b in zip(one, losses(tmp_path / "broken"), strict=True)) > 100 * TOLERANCE
