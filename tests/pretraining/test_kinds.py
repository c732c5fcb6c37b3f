"""Whole runs of encoders and encoder-decoders: what they leave, that `transformers` agrees, and that a resume, also
across epochs, ends in the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining.small_runs import as_left_at
from pretraining.test_run import MODULES, same_runs
from trivium.checkpoints.bundle import load
from trivium.config import build_settings
from trivium.data.corpus import standard_library_root
from trivium.data.examples import ExampleRows
from trivium.data.tasks import Example
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.training.log import read_log

MASKED = {"model": {"kind": "encoder"}, "objective": {"name": "masked", "whole_words": True}}
SPANS = {"model": {"kind": "encoder-decoder"}, "objective": "spans"}


def recipe_of(folder: Path, run: str, changes: dict[str, Any]) -> PretrainRecipe:
    """A run of 24 steps over some 1.5 epochs."""
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    for name in MODULES[1:3]:
        shutil.copy(standard_library_root() / name, texts / name)
    data = {
        "train": [str(texts)],
        "held_out_by": "tail",
        "held_out_fraction": 0.1,
        "sequence_length": 96,
        "rows_per_step": 6,
        "rows_per_micro_batch": 4,
        "evaluation_rows": 4,
        "cache_directory": str(folder / "cache"),
    }
    values = {
        "run": str(folder / run),
        "seed": 2,
        "device": "cpu",
        "threads": 1,
        "tokenizer": {"vocab_size": 420},
        "training": {
            "steps": 24,
            "learning_rate": 5e-3,
            "evaluate_every_steps": 12,
            "save_every_steps": 8,
            "keep_checkpoints": 9,
        },
        "sample_tokens": 12,
        **changes,
        "data": {**data, **changes.get("data", {})},
        "model": {"width": 48, "layers": 2, "heads": 4, "dropout": 0.1, **changes["model"]},
    }
    return build_settings(PretrainRecipe, values, "test")


@pytest.fixture(scope="module", params=[MASKED, SPANS], ids=["masked", "spans"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("kinds")
    return folder, pretrain(recipe_of(folder, "calm", request.param))


def test_what_a_run_says_of_its_model(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    kind = summary["model_facts"]["kind"]
    what = "masked" if kind == "encoder" else "target"
    held_out = summary["held_out"]
    assert held_out[f"{what}_loss"] > 0 and 0 <= held_out[f"{what}_accuracy"] <= 1
    assert not {"perplexity", "bits_per_byte", "nll"} & held_out.keys(), "that is a decoder's"
    records = read_log(folder / "calm" / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert sum(losses[-4:]) / 4 < losses[0] - 0.3
    evaluations = [record for record in records if "held_out_loss" in record]
    assert len(evaluations) == 2 and all("held_out_accuracy" in record for record in evaluations)
    assert all("truth" in sample and sample["prompt"] != sample["truth"] for sample in summary["samples"])
    assert len(summary["samples"]) >= 2
    assert "perplexity" not in (folder / "calm" / "report.html").read_text().lower()
    if kind == "encoder":
        assert summary["baselines"]["unigram_loss"] > held_out["masked_loss"] - 1
        assert all("[MASK]" in s["prompt"] and "[MASK]" not in s["text"] for s in summary["samples"])


def test_the_held_out_figure_is_that_of_the_saved_model(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    again = resume(folder / "calm")
    assert again["held_out"] == summary["held_out"] and again["samples"] == summary["samples"]


def test_transformers_opens_the_model_with_equal_logits(finished: tuple[Path, dict[str, Any]]) -> None:
    transformers = pytest.importorskip("transformers")
    folder, summary = finished
    bundle = load(folder / "calm" / "model")
    text = (folder / "texts" / MODULES[1]).read_text()[:90]
    ids = torch.tensor([bundle.tokenizer.wrap(bundle.tokenizer.encode(text))[0]])
    with torch.no_grad():
        if summary["model_facts"]["kind"] == "encoder":
            theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder / "calm" / "model").eval()
            ours, expected = bundle.model.eval()(ids), theirs(ids).logits
        else:
            theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "calm" / "model").eval()
            target = torch.tensor([[bundle.config.decoder_start_id, 5, 6, 7]])
            ours, expected = bundle.model.eval()(ids, target), theirs(ids, decoder_input_ids=target).logits
    assert float((ours - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_resumed_run_ends_in_the_same_bytes(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert summary["steps"] == 24
    for step in (8, 16):
        copy = as_left_at(folder / "calm", folder / f"from-{step}", step)
        again = resume(copy)
        assert same_runs(folder / "calm", copy) == []
        assert again["held_out"] == summary["held_out"]


def test_control_draws_that_are_not_the_epochs_own_are_caught(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that goes on from wherever it is, as most collators do, is another one after a restart."""
    folder, _ = finished
    right, calls = ExampleRows.row, iter(range(10**6))

    def drifting(self: ExampleRows, number: int, epoch: int = 0) -> list[Example]:
        return right(self, number, epoch + next(calls))

    copy = as_left_at(folder / "calm", folder / "drifting", 8)
    monkeypatch.setattr(ExampleRows, "row", drifting)
    resume(copy)
    assert same_runs(folder / "calm", copy) != []


def test_pairs_are_translated_at_each_evaluation(tmp_path: Path) -> None:
    """Numbers and their digits: BLEU is logged over time, and greedy and beam search are scored at the end."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    rows = [f"{a}{b}{c}{d}" for a in "13" for b in "0246" for c in "579" for d in "0123456789"]
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row in rows:
            file.write(
                json.dumps({"source": " ".join(row), "target": " ".join(names[int(digit)] for digit in row)}) + "\n"
            )
    changes = {
        "model": {"family": "marian", "dropout": 0.0, "layers": 1},
        "objective": {
            "name": "pairs",
            "label_smoothing": 0.1,
            "generate_and_score": "bleu",
            "validation_pairs_to_generate": 8,
            "num_beams": 2,
            "max_target_tokens": 12,
        },
        "data": {"train": str(tmp_path / "pairs.jsonl"), "held_out_by": "document", "sequence_length": 64},
        "sample_prompts": ["1 2 3 4"],
    }
    summary = pretrain(recipe_of(tmp_path, "pairs", changes))
    logged = [r["held_out_bleu"] for r in read_log(tmp_path / "pairs" / "metrics.jsonl") if "held_out_bleu" in r]
    assert len(logged) == 2 and all(0 <= value <= 100 for value in logged)
    held_out = summary["held_out"]
    assert held_out["bleu_greedy"] == logged[-1]
    assert "bleu_beam" in held_out and held_out["target_loss"] > 0
    assert summary["samples"][0]["prompt"] == "1 2 3 4" and len(summary["samples"]) == 5


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("decoder", {"name": "prefix"}),
        ("encoder-decoder", {"name": "prefix"}),
        ("encoder-decoder", {"name": "denoise", "rotate": True}),
        ("encoder-decoder", {"name": "mixture", "mode_tokens": True}),
    ],
)
def test_every_other_objective_makes_a_whole_run(kind: str, objective: dict[str, Any], tmp_path: Path) -> None:
    training = {"steps": 2, "evaluate_every_steps": 1}
    changes = {"model": {"kind": kind, "layers": 1}, "objective": objective, "training": training}
    summary = pretrain(recipe_of(tmp_path, "run", {**changes, "sample_prompts": ["def heap(x):"]}))
    assert summary["steps"] == 2 and summary["samples"][0]["prompt"] == "def heap(x):"
    assert summary["held_out"]["nll" if kind == "decoder" else "target_loss"] > 0
    assert (tmp_path / "run" / "report.html").is_file()
