"""The decoder's second stage: answer what a function does, learned with LoRA from (function, docstring) pairs.

The same held-out prompts are shown before and after, and the ledger says what was forgotten of the text the model was
pretrained on. The adapter stays beside the model, which is not changed.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from trivium.config import build_settings
from trivium.data.functions import split_functions
from trivium.files import write_atomically
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.run import finetune, resume
from trivium.quickstart.state import HELD_OUT, SEED, Quickstart
from trivium.runtime import choose_runtime

QUESTION = "What does this function do?"
MOST_EPOCHS = 6
ROWS_PER_STEP, LENGTH = 16, 256
# Share of the time left that steps may take; generating, measuring and saving take the rest.
STEPS_SHARE = 0.5
MIN_STEPS = 10
SCORED = 48
RANK = 16
# Characters of a sample in the table.
SHOWN = 80


def learn_instructions(state: Quickstart) -> None:
    """Put an adapter on the pretrained model and train it, an ordinary run."""
    run = state.out / "instruct"
    if (run / "recipe.yaml").is_file():
        summary = resume(run, state.progress, ignore_plan=state.ignore_plan)
    else:
        summary = finetune(_recipe(state, run, *write_questions(state.out / "questions")), state.progress)
    before, after, ledger = summary["before"], summary["held_out"], summary["ledger"]
    kept = ("run", "model", "report", "steps", "before", "held_out", "ledger", "peak_bytes", "planned_peak_bytes")
    state.results["instruct"] = {key: summary[key] for key in kept}
    state.table["instructions"] = (
        f"ROUGE-L of {SCORED} held-out answers {100 * before['held_out_rougeL']:.1f} before, "
        f"{100 * after['held_out_rougeL']:.1f} after {summary['steps']} steps of LoRA "
        f"({summary['num_trainable_parameters']:,} of {summary['num_parameters']:,} parameters)"
    )
    if "lost" in ledger:
        state.table["  forgotten"] = f"{ledger['lost']:+.3f} bits per byte of general text (of {ledger['before']:.3f})"
    sample = summary["samples"][0]
    state.table["  for example"] = f"{_short(sample['text'])}; before {_short(sample['before'])}"
    question = f"{QUESTION}\n\ndef count_words(text):\n    return len(text.split())"
    state.next.append(f"trivium chat {shlex.quote(summary['model'])} --prompt {shlex.quote(question)}")


def write_questions(folder: Path) -> tuple[Path, Path]:
    """The two sides of the split as files of {"messages"} rows."""
    paths = (folder / "train.jsonl", folder / "held_out.jsonl")
    for path, functions in zip(paths, split_functions(HELD_OUT["decoder"]), strict=True):
        rows = (
            {
                "messages": [
                    {"role": "user", "content": f"{QUESTION}\n\n{function.code}"},
                    {"role": "assistant", "content": function.summary},
                ]
            }
            for function in functions
        )
        write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    return paths


def _short(text: str) -> str:
    """One line of a bounded length."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _recipe(state: Quickstart, run: Path, train: Path, held_out: Path) -> FinetuneRecipe:
    pretrained = state.summary
    # A token is about three bytes of code; packed rows are nearly full.
    seconds = ROWS_PER_STEP * LENGTH / pretrained["tokens_per_second"]
    characters = train.stat().st_size
    most = int(MOST_EPOCHS * characters / 3 / (ROWS_PER_STEP * LENGTH))
    steps = max(MIN_STEPS, min(most, int(STEPS_SHARE * state.seconds_left / seconds)))
    return build_settings(
        FinetuneRecipe,
        {
            "run": str(run),
            "seed": SEED,
            "start_from": pretrained["model"],
            "ignore_plan": state.ignore_plan,
            "task": {"name": "instruct", "generated_rows": SCORED, "max_new_tokens": 40},
            "data": {
                "train": [{"path": str(train), "name": "functions"}],
                "validation": [{"path": str(held_out), "name": "functions"}],
                "sequence_length": LENGTH,
                "rows_per_step": ROWS_PER_STEP,
                "rows_per_micro_batch": 8,
                "evaluation_rows": 64,
            },
            "peft": {"method": "lora", "rank": RANK},
            "training": {
                "steps": steps,
                "learning_rate": 2e-3,
                "warmup_steps": max(1, steps // 10),
                "schedule": "linear",
                "final_learning_rate_ratio": 0.0,
                "weight_decay": 0.0,
                "precision": choose_runtime(seed=SEED).precision,
                "evaluate_every_steps": max(1, steps // 2),
                "save_every_steps": max(1, steps // 2),
            },
            "forgetting": {"max_bytes": 32_000},
        },
        "quickstart",
    )
