"""From nothing to a trained, measured language model, in the time asked for: a list of stages, each a few lines.

A stage reads what earlier stages left in `Quickstart` and adds its own rows to the table that is printed at the end.
Later stages of life are added to `STAGES`. Everything lies under one directory: `tokenizer/`, and a run directory for
each stage that trains (`pretrain/`).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trivium.config import build_settings
from trivium.data.corpus import STANDARD_LIBRARY
from trivium.data.prepare import prepare, training_texts
from trivium.data.settings import DataSettings
from trivium.errors import UserError
from trivium.files import is_vacant, write_atomically
from trivium.machine import peak_product_flops
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.progress import SILENT, Progress, short_number, short_time
from trivium.quickstart.sizing import USUAL_UTILISATION, shape_for, time_steps
from trivium.runtime import choose_runtime, prepare_process
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.settings import TrainingSettings

ORDERS = "quickstart.json"
SEED = 0
VOCABULARY = 4096
DATA = DataSettings(
    train=[STANDARD_LIBRARY],  # type: ignore[arg-type]
    held_out_fraction=0.04,
    sequence_length=256,
    rows_per_step=32,
    rows_per_micro_batch=16,
    evaluation_rows=64,
)
PROMPTS = ["import os\n", "def read_lines(path):\n    ", "class Stack:\n    ", '"""This module provides']
# Seconds kept back for the measures after training, per million held-out bytes, and for samples and the report.
MEASURE_SHARE, CLOSING_SECONDS = 0.06, 12.0
MIN_STEPS = 20
# So many times through the text a model of these sizes still gains; a fast machine ends early instead of overfitting.
MOST_EPOCHS = 8
EVALUATIONS = 8


@dataclass
class Quickstart:
    """What is known so far; stages fill it in."""

    out: Path
    minutes: float
    progress: Progress
    began: float
    tokens: int = 0
    recipe: PretrainRecipe | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    table: dict[str, str] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Of the time asked for."""
        return 60 * self.minutes - (time.perf_counter() - self.began)


class Stage(NamedTuple):
    """One stage of the quickstart."""

    name: str
    work: Callable[[Quickstart], None]


def learn_tokenizer(state: Quickstart) -> None:
    """Learn byte-pair merges from the standard library, the part that is trained on."""
    folder = state.out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        Tokenizer.train(texts=training_texts(DATA), vocab_size=VOCABULARY, progress=state.progress).save(folder)
    tokenizer = Tokenizer.load(folder)
    prepared = prepare(DATA, tokenizer, progress=state.progress)
    shards = prepared.train[0][0]
    state.tokens = shards.num_tokens
    state.table["text"] = f"{shards.num_documents} modules of the standard library, {short_number(shards.num_bytes)}B"
    state.table["tokenizer"] = (
        f"{tokenizer.vocab_size} entries, {shards.num_bytes / shards.num_tokens:.2f} bytes a token, "
        f"{short_number(shards.num_tokens)} tokens"
    )


def choose_size(state: Quickstart) -> None:
    """Choose the model for this machine and time, and time real steps of it."""
    saved = state.out / "pretrain" / "recipe.yaml"
    if saved.is_file():
        return
    runtime = choose_runtime(seed=SEED)
    prepare_process(runtime)
    rate = (peak_product_flops(runtime.device, runtime.precision) or 1e11) * USUAL_UTILISATION
    training = TrainingSettings(steps=1, precision=runtime.precision)
    budget = state.seconds_left * (1 - MEASURE_SHARE) - CLOSING_SECONDS
    most_tokens = MOST_EPOCHS * state.tokens
    model = shape_for(rate * max(budget, 10.0), VOCABULARY, DATA.sequence_length, most_tokens)
    state.progress.note(f"timing steps of a model of width {model.width} with {model.layers} layers")
    seconds = time_steps(
        model, runtime, training, DATA.rows_per_step, DATA.rows_per_micro_batch, min(10.0, 0.03 * budget)
    )
    budget = state.seconds_left * (1 - MEASURE_SHARE) - CLOSING_SECONDS
    # An evaluation reads its rows once, forward only: about a third of what training on them takes.
    evaluation = seconds * (DATA.evaluation_rows or 0) / DATA.rows_per_step / 3
    most_steps = most_tokens // (DATA.rows_per_step * DATA.sequence_length)
    steps = max(MIN_STEPS, min(most_steps, int((budget - EVALUATIONS * evaluation) / seconds)))
    state.recipe = build_settings(
        PretrainRecipe,
        {
            "run": str(state.out / "pretrain"),
            "seed": SEED,
            "device": runtime.torch_device().type,
            "tokenizer": {"path": str(state.out / "tokenizer"), "vocab_size": VOCABULARY},
            "data": DATA,
            "model": model,
            "training": {
                "steps": steps,
                "precision": runtime.precision,
                "learning_rate": 3e-3,
                "schedule": "wsd",
                "decay_fraction": 0.4,
                "final_learning_rate_ratio": 0.0,
                "evaluate_every_steps": max(1, steps // EVALUATIONS),
                "save_every_steps": max(1, steps // 4),
            },
            "sample_prompts": PROMPTS,
        },
        "quickstart",
    )


def learn_language(state: Quickstart) -> None:
    """Pretrain, measure, sample, report: one run of the ordinary kind."""
    if state.recipe is None:
        state.progress.note(f"going on with the run in {state.out / 'pretrain'}")
        state.summary = resume(state.out / "pretrain", state.progress)
    else:
        state.summary = pretrain(state.recipe, state.progress)
    summary, facts = state.summary, state.summary["model_facts"]
    held_out, baselines = summary["held_out"], summary["baselines"]
    state.table |= {
        "model": f"{short_number(facts['parameters'])} parameters, {facts['layers']} layers of width {facts['width']}",
        "training": (
            f"{summary['steps']} steps, {short_number(summary['tokens'])} tokens, "
            f"{short_number(summary['tokens_per_second'])} tokens/s"
        ),
        "memory": (
            f"{short_number(summary['peak_bytes'])}B at most, {short_number(summary['planned_peak_bytes'])}B planned"
        ),
        "held-out text": f"{held_out['bits_per_byte']:.3f} bits per byte (perplexity {held_out['perplexity']:.1f})",
        "  xz -9e": f"{baselines['xz_bits_per_byte']:.3f} bits per byte on the same text",
        "  unigram entropy": f"{baselines['unigram_bits_per_byte']:.3f} bits per byte, same tokenizer",
    }


STAGES = [
    Stage("tokenizer", learn_tokenizer),
    Stage("size", choose_size),
    Stage("pretrain", learn_language),
]


def quickstart(
    out: str | Path, minutes: float = 5.0, family: str = "decoder", progress: Progress = SILENT
) -> dict[str, Any]:
    """Run all stages; returns their results, the table for people, and the commands to try next.

    Given again with the same orders, it goes on where it stopped. Raises UserError when `out` holds something else.
    """
    out = Path(out)
    if family != "decoder":
        raise UserError(f"--family {family}: only decoder can be pretrained so far; leave the option out")
    if not 0.2 <= minutes <= 7 * 24 * 60:
        raise UserError(f"--minutes {minutes:g}: give between 0.2 minutes and a week")
    claim(out, {"family": family, "minutes": minutes})
    state = Quickstart(out, minutes, progress, time.perf_counter())
    for stage in STAGES:
        stage.work(state)
    seconds = time.perf_counter() - state.began
    state.table["time"] = f"{short_time(seconds)} of {short_time(60 * minutes)}"
    model, run = (shlex.quote(state.summary[key]) for key in ("model", "run"))
    return {
        **{key: state.summary[key] for key in ("run", "model", "report", "steps", "final_loss")},
        **{key: state.summary[key] for key in ("tokens_per_second", "peak_bytes", "planned_peak_bytes")},
        "held_out": state.summary["held_out"],
        "baselines": state.summary["baselines"],
        "samples": state.summary["samples"],
        "seconds": seconds,
        "table": state.table,
        "next": [
            f"trivium generate {model} --prompt 'def main():' --max-new-tokens 80",
            f"trivium metric perplexity {model} --file {model}/README.md",
            f"trivium pretrain {run}/recipe.yaml run=runs/longer training.steps={4 * state.summary['steps']}",
        ],
    }


def claim(out: Path, orders: dict[str, Any]) -> None:
    """Make `out` this quickstart's directory, or find that it is one with the same orders."""
    file = out / ORDERS
    if file.is_file():
        try:
            theirs = dict(json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{file} is damaged: delete {out}, or choose another --out") from None
        if theirs != orders:
            raise UserError(
                f"{out} holds a quickstart of {theirs.get('minutes')} minutes, not {orders['minutes']:g}: give the "
                f"same --minutes to go on with it, choose another --out, or delete {out}"
            )
    elif not is_vacant(out):
        raise UserError(f"{out} is not empty and holds no quickstart: choose another --out")
    else:
        write_atomically(file, json.dumps(orders) + "\n")
