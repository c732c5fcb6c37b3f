"""The run in one sentence: did it end, and is the model better than what needs no model at all.

Two baselines make bits per byte mean something: the entropy of the tokens' own frequencies (a model that ignores its
context), and `xz -9` on the same bytes (a compressor that never learned language). A model above either has not
learned what they know, and the sentence says so.
"""

from __future__ import annotations

from typing import Literal

from trivium.report import ledger, scores, units
from trivium.report.run_data import RunData, number, part, words

State = Literal["finished", "stopped", "failed", "unfinished"]

_STATES: dict[str, State] = {
    "finished": "finished",
    "completed": "finished",
    "done": "finished",
    "stopped": "stopped",
    "interrupted": "stopped",
    "failed": "failed",
}


def state(run: RunData) -> State:
    """How the run ended; `unfinished` when it has not (or died without a word)."""
    return _STATES.get(words(run.summary, "status").lower(), "unfinished")


def bits_per_byte(run: RunData) -> float | None:
    """Held-out bits per byte: the final measurement, else the newest evaluation of the log."""
    final = number(part(run.summary, "held_out"), "bits_per_byte")
    return final if final is not None else run.curve("held_out_bits_per_byte").last


def steps_done(run: RunData) -> int | None:
    """Optimizer steps finished, from the summary or the log (where `step` counts finished steps)."""
    steps = number(run.summary, "steps")
    if steps is not None:
        return int(steps)
    return run.last_step


def final_loss(run: RunData) -> float | None:
    """The last training loss in nats per token."""
    loss = number(run.summary, "final_loss")
    return loss if loss is not None else run.curve("loss").last


def sentence(run: RunData) -> str:
    """The verdict, plain text."""
    return f"{_how_it_ended(run)} {_how_good(run)}".strip()


def _how_it_ended(run: RunData) -> str:
    steps = steps_done(run)
    planned = number(part(run.recipe, "training"), "steps")
    after = f" after {steps:,} steps" if steps is not None else ""
    seconds = number(run.summary, "seconds")
    time = f" and {units.duration(seconds)}" if seconds and steps is not None else ""
    match state(run):
        case "finished":
            return f"Trained to the end{after}{time}."
        case "stopped":
            return f"Stopped early{after}{time}; `trivium resume` goes on from there."
        case "failed":
            error = words(run.summary, "error", limit=500).strip().rstrip(".")
            return f"Failed{after}{f': {error}' if error else ''}."
        case "unfinished":
            if steps is None:
                return "Not finished: no step has been logged yet."
            total = f" of {planned:,.0f}" if planned else ""
            return f"Not finished: step {steps:,}{total} is the last one logged."


def _how_good(run: RunData) -> str:
    if told := ledger.verdict(run):
        return told
    ours = bits_per_byte(run)
    if ours is None and (other := scores.verdict(run)):
        return other
    if ours is None:
        loss = final_loss(run)
        measured = "it has not been measured on held-out text"
        if loss is None:
            return ""
        return f"Its last training loss is {units.figure(loss)} nats per token; {measured}."
    below: list[str] = []
    above: list[str] = []
    for name, value in baselines(run):
        (below if ours < value else above).append(f"{name} ({units.figure(value)})")
    text = f"Held-out text costs it {units.figure(ours)} bits per byte"
    if below:
        text += f", below {' and '.join(below)}"
    if above:
        text += f"{', but' if below else ','} not yet below {' or '.join(above)}"
    return text + "."


def baselines(run: RunData) -> list[tuple[str, float]]:
    """What needs no model, in bits per byte of the same held-out text: (name, value)."""
    facts = part(run.summary, "baselines")
    named = (
        ("xz -9", number(facts, "xz_bits_per_byte")),
        ("the unigram entropy of its tokens", number(facts, "unigram_bits_per_byte")),
    )
    return [(name, value) for name, value in named if value is not None and value > 0]
