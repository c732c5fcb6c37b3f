"""What an encoder or an encoder-decoder is measured by: right answers on held-out text, scores of what it writes.

Neither has a probability for a text as a whole, so neither has bits per byte; these figures stand in their place.
"""

from __future__ import annotations

from typing import NamedTuple

from trivium.report import markup, units
from trivium.report.plots import SECOND, Bar, Line, bar_plot, line_plot
from trivium.report.run_data import RunData, number, part


class Score(NamedTuple):
    """One way to score written texts."""

    key: str
    """As in `metrics.jsonl`, after `held_out_`."""
    title: str
    largest: float


SCORES = (
    Score("bleu", "BLEU", 100.0),
    Score("rouge1", "ROUGE-1", 1.0),
    Score("rouge2", "ROUGE-2", 1.0),
    Score("rougeL", "ROUGE-L", 1.0),
)
_LABELS = {
    "masked_accuracy": "Masked tokens filled rightly",
    "masked_loss": "Nats per masked token",
    "target_accuracy": "Target tokens predicted rightly",
    "target_loss": "Nats per target token",
    "num_targets": "Tokens predicted",
    "num_bytes": "Bytes of text",
    "num_documents": "Documents",
}


def accuracy(run: RunData) -> float | None:
    """Share of held-out tokens predicted rightly, 0 to 1: the final measurement, else the newest of the log."""
    held_out = part(run.summary, "held_out")
    for key in ("masked_accuracy", "target_accuracy"):
        if (found := number(held_out, key)) is not None:
            return found
    return run.curve("held_out_accuracy").last


def verdict(run: RunData) -> str:
    """How good it is, in a sentence; empty where nothing has been measured."""
    found = accuracy(run)
    if found is None:
        return ""
    held_out, baselines = part(run.summary, "held_out"), part(run.summary, "baselines")
    masked = number(held_out, "masked_accuracy") is not None
    text = f"It {'fills' if masked else 'predicts'} {100 * found:.1f} % of the held-out "
    text += "masks rightly" if masked else "target tokens rightly"
    guess = number(baselines, "commonest_token_accuracy")
    if guess is not None:
        text += f"; always giving the commonest token would fill {100 * guess:.1f} %"
    for score in SCORES:
        greedy, beam = (number(held_out, f"{score.key}_{way}") for way in ("greedy", "beam"))
        if greedy is not None and beam is not None:
            text += f"; {score.title} {_shown(score, greedy)} greedily, {_shown(score, beam)} by beam search"
    return text + "."


def held_out(run: RunData) -> str:
    """The section about held-out text of a model without bits per byte; empty where nothing was measured."""
    found = accuracy(run)
    if found is None:
        return ""
    pieces = [_right_answers(run, found)]
    rows = [
        (label, markup.shown("", value)) for key, label in _LABELS.items() if (value := _fact(run, key)) is not None
    ]
    scored = [_score_rows(run, score) for score in SCORES]
    rows += [row for some in scored for row in some]
    if rows:
        pieces.append(markup.block("Measured", markup.table(rows)))
    pieces += [_over_time(run, score) for score in SCORES if run.curve(f"held_out_{score.key}")]
    return markup.section("Held-out text", markup.columns(pieces))


def _fact(run: RunData, key: str) -> float | None:
    return number(part(run.summary, "held_out"), key)


def _right_answers(run: RunData, found: float) -> str:
    title = "Right answers on held-out text"
    guess = number(part(run.summary, "baselines"), "commonest_token_accuracy")
    bars = [Bar("always the commonest token", guess, f"{100 * guess:.1f} %")] if guess is not None else []
    bars.append(Bar("this model", found, f"{100 * found:.1f} %", ours=True))
    curve = run.curve("held_out_accuracy")
    caption = "Share of the hidden or target tokens whose likeliest prediction is right, higher is better."
    if curve:
        caption += f" {100 * curve.values[0]:.1f} % at first, {100 * curve.values[-1]:.1f} % at last."
    return markup.plot(title, bar_plot(bars, name="right-answers"), caption)


def _score_rows(run: RunData, score: Score) -> list[tuple[str, str]]:
    ways = (("greedy", "greedily"), ("beam", "by beam search"))
    found = [(words, _fact(run, f"{score.key}_{way}")) for way, words in ways]
    return [(f"{score.title} {words}", _shown(score, value)) for words, value in found if value is not None]


def _over_time(run: RunData, score: Score) -> str:
    curve = run.curve(f"held_out_{score.key}")
    line = Line(curve, score.title, SECOND, marked=True)
    caption = f"{_shown(score, curve.values[0])} at first, {_shown(score, curve.values[-1])} at last; written greedily."
    svg = line_plot([line], name=score.key, last=run.last_step or 1)
    return markup.plot(f"{score.title} of held-out pairs over the steps", svg, caption)


def _shown(score: Score, value: float) -> str:
    return units.figure(value) if score.largest == 1.0 else f"{value:.1f}"
