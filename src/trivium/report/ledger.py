"""The sections of a fine-tuned model: what it learned, before and after, and what it forgot for it.

The ledger was made by `finetuning/forgetting.py`; here nothing of it is trusted, and what is missing is left out.
"""

from __future__ import annotations

from trivium.report import markup, units
from trivium.report.plots import Trail, trail_plot
from trivium.report.run_data import Facts, RunData, number, part, words

MOST_POINTS = 500
MEASURES = {
    "general_bits_per_byte": "bits per byte of general text",
    "general_loss": "nats per hidden token of general text",
}
# Measures of held-out rows: key after `held_out_`, title, whether more is better.
SCORES = (
    ("loss", "Loss, nats", False),
    ("accuracy", "Accuracy", True),
    ("f1", "F1", True),
    ("f1_macro", "F1, mean over classes", True),
    ("matthews_correlation", "Matthews correlation", True),
    ("exact_match", "Exact match", True),
    ("token_f1", "Token F1", True),
    ("precision", "Precision", True),
    ("recall", "Recall", True),
    ("pearson", "Pearson correlation", True),
    ("spearman", "Spearman correlation", True),
    ("rmse", "Root mean squared error", False),
    ("rouge1", "ROUGE-1", True),
    ("rouge2", "ROUGE-2", True),
    ("rougeL", "ROUGE-L", True),
    ("bleu", "BLEU", True),
)


def gains(run: RunData) -> str:
    """Held-out measures before the first step and after the last; empty for runs of other stages."""
    rows = [
        (title, f"{units.figure(before)} \N{RIGHTWARDS ARROW} {units.figure(after)}")
        for _, title, before, after, _ in measured(run)
    ]
    if not rows:
        return ""
    trained, whole = number(run.summary, "num_trainable_parameters"), number(run.summary, "num_parameters")
    share = f"{units.count(trained)} of {units.count(whole)} parameters were trained. " if trained and whole else ""
    note = f"{share}Measured on rows that were never trained on, before the first step and after the last."
    return markup.section("What it learned", markup.paragraph(note), markup.table(rows))


def measured(run: RunData) -> list[tuple[str, str, float, float, bool]]:
    """(key, title, before, after, whether more is better) of each held-out measure that was made twice."""
    before, after = part(run.summary, "before"), part(run.summary, "held_out")
    found = []
    for key, title, rises in SCORES:
        then, now = number(before, f"held_out_{key}"), number(after, f"held_out_{key}")
        if then is not None and now is not None:
            found.append((key, title, then, now, rises))
    return found


def section(run: RunData) -> str:
    """Gained against lost, one point for each evaluation; empty for runs of other stages."""
    facts = part(run.summary, "ledger")
    if not facts:
        return ""
    title = "What it forgot"
    if reason := words(facts, "not_measured", 300):
        return markup.section(title, markup.missing(f"Not measured: {reason}."))
    before, after = number(facts, "before"), number(facts, "after")
    if before is None or after is None:
        return ""
    name = MEASURES.get(words(facts, "measure", 60), "of general text")
    pieces = [markup.paragraph(f"{_sentence(facts, before, after, name)} {_advice(facts)}")]
    if len(trail := points(facts)) > 1:
        svg = trail_plot(
            [Trail("this run", tuple(trail))], name="ledger", across="held-out loss of the task, nats", up=name
        )
        caption = "Left is better at the task, down is better at the rest; the hollow point is where it began."
        pieces.append(markup.plot("Gained against lost", svg, caption))
    return markup.section(title, *pieces)


def verdict(run: RunData) -> str:
    """What was gained and lost, in a sentence; empty for runs of other stages."""
    found = measured(run)
    if not found:
        return ""
    named = [("the loss" if key == "loss" else title, then, now) for key, title, then, now, _ in found[:2]]
    said = [f"{title} went from {units.figure(then)} to {units.figure(now)}" for title, then, now in named]
    facts = part(run.summary, "ledger")
    before, after = number(facts, "before"), number(facts, "after")
    text = f"On held-out rows {' and '.join(said)}."
    if before is not None and after is not None:
        name = MEASURES.get(words(facts, "measure", 60), "of general text")
        text += f" {_sentence(facts, before, after, name)}"
    return text


def _sentence(facts: Facts, before: float, after: float, name: str) -> str:
    lost = after - before
    verb = "lost" if lost > 0 else "won"
    return f"It {verb} {abs(lost):.3g} {name} (from {units.figure(before)} to {units.figure(after)})."


def _advice(facts: Facts) -> str:
    share = number(facts, "suggested_replay_share")
    if not share:
        return "Nothing need be done about it."
    return f"To keep more, learn on general text beside the rows: data.replay.share={share:g}."


def points(facts: Facts) -> list[tuple[float, float]]:
    """(held-out loss, general measure) of each evaluation."""
    listed = facts.get("points")
    found = []
    for point in listed[:MOST_POINTS] if isinstance(listed, list) else []:
        if isinstance(point, dict):
            across, up = number(point, "held_out_loss"), number(point, "general")
            if across is not None and up is not None:
                found.append((across, up))
    return found
