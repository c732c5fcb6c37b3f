"""The encoder's second stage: tell from a function's code which package of the standard library it is from.

Classes are the packages with enough documented functions on both sides of the split; tested is on functions of files
that neither pretraining nor this stage has seen.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

from trivium.data.functions import split_functions
from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.finetuning.classifier import LabelledText, train_classifier
from trivium.quickstart.state import HELD_OUT, SEED, Quickstart
from trivium.runtime import choose_runtime
from trivium.training.settings import TrainingSettings

MIN_TRAINING, MIN_HELD_OUT = 40, 10
MOST_CLASSES = 10
ROWS_PER_STEP = 16
LENGTH = 192
MOST_EPOCHS = 6
# Share of the time left that steps may take; loading, measuring and saving take the rest.
STEPS_SHARE = 0.6
MIN_STEPS = 10


def learn_packages(state: Quickstart) -> None:
    """Fine-tune the pretrained encoder with a fresh head, and measure it on held-out functions."""
    train_side, held_out_side, labels = labelled_functions()
    run = state.out / "classify"
    summary = run / "summary.json"
    if not summary.is_file():
        tokens_per_second = state.summary["tokens_per_second"]
        seconds = ROWS_PER_STEP * LENGTH / tokens_per_second
        most = MOST_EPOCHS * len(train_side) // ROWS_PER_STEP
        steps = same_steps(run, max(MIN_STEPS, min(most, int(STEPS_SHARE * state.seconds_left / seconds))))
        runtime = choose_runtime(seed=SEED)
        result = train_classifier(
            Path(state.summary["model"]),
            labels,
            train_side,
            held_out_side,
            run,
            TrainingSettings(
                steps=steps,
                learning_rate=5e-4,
                warmup_steps=max(1, steps // 10),
                weight_decay=0.01,
                precision=runtime.precision,
                save_every_steps=max(1, steps // 4),
            ),
            runtime,
            rows_per_step=ROWS_PER_STEP,
            sequence_length=LENGTH,
            ignore_plan=state.ignore_plan,
            progress=state.progress,
        )
        commonest = max(Counter(text.label for text in held_out_side).values()) / len(held_out_side)
        found = {
            "run": str(run),
            "model": str(run / "model"),
            "accuracy": result.accuracy,
            "loss": result.loss,
            "num_examples": len(held_out_side),
            "labels": list(labels),
            "commonest_label_accuracy": commonest,
            "steps": result.training.steps,
            "peak_bytes": result.training.peak_bytes,
            "planned_peak_bytes": result.planned_peak_bytes,
            "status": "finished",
        }
        write_atomically(summary, json.dumps(found, indent=2) + "\n")
    state.results["classifier"] = found = json.loads(summary.read_text())
    state.table["classifier"] = (
        f"{100 * found['accuracy']:.1f} % of {found['num_examples']} held-out functions put into the right one of "
        f"{len(found['labels'])} packages"
    )
    state.table["  commonest package"] = f"{100 * found['commonest_label_accuracy']:.1f} % would be right"
    code = "def send(self, message): self.smtp.sendmail(self.sender, self.recipients, message.as_string())"
    state.next.append(f"trivium classify {shlex.quote(found['model'])} {shlex.quote(code)}")


def labelled_functions() -> tuple[list[LabelledText], list[LabelledText], tuple[str, ...]]:
    """(to train on, held out, names of the classes): by the file that a function is from."""
    sides = split_functions(HELD_OUT["encoder"])
    counts = [Counter(function.package for function in side) for side in sides]
    enough = [name for name, count in counts[0].most_common() if count >= MIN_TRAINING]
    labels = tuple(sorted([name for name in enough if counts[1][name] >= MIN_HELD_OUT][:MOST_CLASSES]))
    if len(labels) < 2:
        raise UserError("this Python's standard library has too few documented functions to tell packages apart")
    numbers = {name: number for number, name in enumerate(labels)}
    trained, held_out = (
        [LabelledText(f.code, numbers[f.package]) for f in side if f.package in numbers] for side in sides
    )
    return trained, held_out, labels


def same_steps(run: Path, steps: int) -> int:
    """The steps that a run which was interrupted had planned, else `steps`."""
    plan = run / "plan.json"
    if plan.is_file():
        return int(json.loads(plan.read_text())["steps"])
    write_atomically(plan, json.dumps({"steps": steps}) + "\n")
    return steps
