"""The encoder-decoder's second stage: write a function's docstring from its code, scored by ROUGE.

Pairs are (code without docstring, first sentence of the docstring); scored are functions of files that neither
pretraining nor this stage has seen, beside what the words of the function's own name would score.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from trivium.config import build_settings
from trivium.data.functions import split_functions
from trivium.files import write_atomically
from trivium.metrics import rouge
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.quickstart.state import HELD_OUT, SEED, Quickstart
from trivium.runtime import choose_runtime

MOST_EPOCHS = 12
ROWS_PER_STEP = 16
STEPS_SHARE = 0.6
MIN_STEPS = 10
SCORED = 100
# Characters of a sample in the table.
SHOWN = 80


def learn_summaries(state: Quickstart) -> None:
    """Train the pretrained model on the pairs, an ordinary run, and score what it writes."""
    run = state.out / "summaries"
    if (run / "recipe.yaml").is_file():
        summary = resume(run, state.progress, ignore_plan=state.ignore_plan)
    else:
        summary = pretrain(_recipe(state, run, *write_pairs(state.out / "pairs")), state.progress)
    held_out = summary["held_out"]
    state.results["summaries"] = {key: summary[key] for key in ("run", "model", "report", "steps", "held_out")}
    names = name_baseline(state.out / "pairs" / "held_out.jsonl")
    state.results["summaries"]["name_baseline"] = names
    state.table["docstrings"] = "ROUGE-1/2/L of {} held-out functions: {} greedily, {} by beam search".format(
        SCORED, _three(held_out, "{}_greedy"), _three(held_out, "{}_beam")
    )
    state.table["  function's name"] = f"{_three(names, '{}')} for its words alone"
    sample = summary["samples"][0]
    state.table["for example"] = f"{_short(sample['text'])}; its author wrote {_short(sample['truth'])}"
    code = "def count_words(text): return len(text.split())"
    state.next.append(f"trivium seq2seq {shlex.quote(summary['model'])} {shlex.quote(code)} --num-beams 4")


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """The two sides of the split as files of {"source", "target"} rows."""
    paths = (folder / "train.jsonl", folder / "held_out.jsonl")
    for path, functions in zip(paths, split_functions(HELD_OUT["encoder-decoder"]), strict=True):
        rows = (json.dumps({"source": function.code, "target": function.summary}) for function in functions)
        write_atomically(path, "".join(f"{row}\n" for row in rows))
    return paths


def name_baseline(held_out: Path) -> dict[str, float]:
    """The F measures of ROUGE when the words of a function's name stand for its summary."""
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    names = [match[1] if (match := re.search(r"def (\w+)", row["source"])) else "" for row in rows]
    words = [" ".join(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)) for name in names]
    found = rouge(words, [row["target"] for row in rows])
    return {kind: found[kind]["fmeasure"] for kind in ("rouge1", "rouge2", "rougeL")}


def _short(text: str) -> str:
    """One line of a bounded length."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _three(scores: dict[str, Any], pattern: str) -> str:
    return "/".join(f"{100 * scores[pattern.format(kind)]:.1f}" for kind in ("rouge1", "rouge2", "rougeL"))


def _recipe(state: Quickstart, run: Path, train: Path, held_out: Path) -> PretrainRecipe:
    pretrained = state.summary
    length = state.data.sequence_length
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    # A token is about three bytes of code; sources longer than a row are cut.
    tokens = sum(min(len(row["source"]) // 3, length) + len(row["target"]) // 3 for row in rows)
    tokens_per_step = 1.1 * ROWS_PER_STEP * length
    seconds = tokens_per_step / pretrained["tokens_per_second"]
    most = int(MOST_EPOCHS * tokens / tokens_per_step)
    steps = max(MIN_STEPS, min(most, int(STEPS_SHARE * state.seconds_left / seconds)))
    saved = json.loads((Path(pretrained["model"]) / "config.json").read_text())
    return build_settings(
        PretrainRecipe,
        {
            "run": str(run),
            "seed": SEED,
            "start_from": pretrained["model"],
            "ignore_plan": state.ignore_plan,
            "tokenizer": {"path": str(state.out / "tokenizer"), "vocab_size": saved["vocab_size"]},
            "objective": {
                "name": "pairs",
                "generate_and_score": "rouge",
                "validation_pairs_to_generate": SCORED,
                "max_target_tokens": 40,
            },
            "data": {
                "train": [str(train)],
                "validation": [str(held_out)],
                "sequence_length": length,
                "rows_per_step": ROWS_PER_STEP,
                "rows_per_micro_batch": 8,
                "evaluation_rows": 32,
            },
            "training": {
                "steps": steps,
                "learning_rate": 1e-3,
                "warmup_steps": max(1, steps // 10),
                "schedule": "linear",
                "final_learning_rate_ratio": 0.0,
                "weight_decay": 0.01,
                "precision": choose_runtime(seed=SEED).precision,
                "evaluate_every_steps": max(1, steps // 3),
                "save_every_steps": max(1, steps // 3),
            },
        },
        "quickstart",
    )
