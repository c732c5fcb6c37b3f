"""The parts of the page, each a function from a run to HTML; a part without data says why it is empty."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from trivium.report import markup, scores, units
from trivium.report.plots import SECOND, Bar, Line, bar_plot, line_plot
from trivium.report.run_data import RunData, number, part, words
from trivium.report.verdict import baselines, bits_per_byte, final_loss, sentence, state

MAX_SAMPLES = 12
MAX_SAMPLE_CHARACTERS = 4_000
MAX_RECIPE_CHARACTERS = 100_000

_MODEL_LABELS = {
    "kind": "Kind",
    "parameters": "Parameters",
    "num_parameters": "Parameters",
    "layers": "Layers",
    "width": "Width",
    "heads": "Heads",
    "kv_heads": "Key and value heads",
    "context": "Context, tokens",
    "max_positions": "Context, tokens",
    "vocab_size": "Vocabulary",
    "training_flops_per_token": "FLOPs to train on a token",
}
_DATA_LABELS = {
    "sources": "Sources",
    "documents": "Documents",
    "tokens": "Tokens",
    "bytes": "Bytes",
    "held_out_documents": "Held-out documents",
    "held_out_tokens": "Held-out tokens",
    "held_out_bytes": "Held-out bytes",
}
_TOKENIZER_LABELS = {
    "vocab_size": "Vocabulary",
    "bytes_per_token": "Bytes per token",
    "unused_entries": "Unused entries",
    "fingerprint": "Fingerprint",
}
_PLAN_LABELS = {
    "weights_bytes": "Weights",
    "gradients_bytes": "Gradients",
    "optimizer_bytes": "Optimizer state",
    "activations_bytes": "Activations",
    "logits_bytes": "Logits",
    "kv_cache_bytes": "KV cache",
    "framework_bytes": "Framework",
    "allocator_bytes": "Holes between blocks",
    "peak_bytes": "Peak, planned",
}


_SAMPLE_NOTES = {
    "decoder": "Prompts in colour, what the model wrote after them in plain.",
    "encoder": "Held-out text with tokens hidden in colour, the same with the model's guesses in plain.",
    "encoder-decoder": "Sources in colour, what the model wrote for them in plain.",
}
_COMMANDS = {
    "decoder": ('trivium generate {} --prompt "Once upon a time"', "trivium metric perplexity {} --file YOUR_TEXT.txt"),
    "encoder": ('trivium fill-mask {} "The teacher [MASK] the student."',),
    "encoder-decoder": ('trivium seq2seq {} "YOUR SOURCE TEXT"',),
}
_AUTO_CLASSES = {
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModelForMaskedLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}


def header(run: RunData) -> str:
    """Title, verdict, key figures."""
    name = words(run.summary, "run", 200) or str(run.directory)
    held_out = part(run.summary, "held_out")
    figures: list[tuple[str, float | None, Callable[[float], str]]] = [
        ("Bits per byte", bits_per_byte(run), units.figure),
        ("Perplexity", number(held_out, "perplexity"), units.figure),
        ("Right answers", scores.accuracy(run), lambda value: f"{100 * value:.1f} %"),
        ("Training loss", final_loss(run), units.figure),
        ("Tokens per second", _tokens_per_second(run), lambda value: f"{value:,.0f}"),
        ("Peak memory", _peak_bytes(run), units.size),
        ("Time", number(run.summary, "seconds") or run.curve("seconds").last, units.duration),
    ]
    known = "\n".join(
        f"<div><dt>{markup.text(label)}</dt><dd>{markup.text(show(value))}</dd></div>"
        for label, value, show in figures
        if value is not None
    )
    title = run.directory.resolve().name or "run"
    return (
        f'<header>\n<p class="kicker">Trivium training report · {markup.text(name)}</p>\n'
        f"<h1>{markup.text(title)}</h1>\n"
        f'<p class="verdict">{markup.text(sentence(run))}</p>\n'
        + (f'<dl class="key-figures">\n{known}\n</dl>\n' if known else "")
        + "</header>"
    )


def what_was_trained(run: RunData) -> str:
    """Model, data and tokenizer as tables."""
    model = part(run.summary, "model_facts") or part(run.recipe, "model")
    absent = "Not known: the run has not written its summary yet."
    model_table, data_table, tokenizer_table = (
        markup.block(title, markup.table(rows) if rows else markup.missing(absent))
        for title, rows in (
            ("Model", markup.rows_of(model, _MODEL_LABELS)),
            ("Data", markup.rows_of(part(run.summary, "data_facts"), _DATA_LABELS)),
            ("Tokenizer", markup.rows_of(part(run.summary, "tokenizer_facts"), _TOKENIZER_LABELS)),
        )
    )
    right = f'<div class="pile">\n{data_table}\n{tokenizer_table}\n</div>'
    return markup.section("What was trained on what", markup.columns([model_table, right]))


def learning(run: RunData) -> str:
    """Loss, learning rate and gradient norm over the steps."""
    loss, held_out = run.curve("loss"), run.curve("held_out_loss")
    if not loss and not held_out:
        return markup.section("Learning", markup.missing("No curves: metrics.jsonl holds no loss yet."))
    lines = [Line(loss, "training", smoothed=True)] if loss else []
    if held_out:
        lines.append(Line(held_out, "held out", SECOND, marked=True))
    caption = "Cross-entropy in nats per predicted token."
    if loss:
        first, last = (units.figure(loss.values[index]) for index in (0, -1))
        caption += f" Training: {first} at first, {last} at last."
    if held_out:
        best = min(range(len(held_out.values)), key=held_out.values.__getitem__)
        lowest, step = units.figure(held_out.values[best]), held_out.steps[best]
        caption += f" Held out: {lowest} at best (step {step:,})."
    else:
        caption += " No held-out evaluation has been logged."
    end = run.last_step or 1
    log = min((*loss.values, *held_out.values)) > 0
    return markup.section(
        "Learning",
        markup.plot(
            "Loss",
            line_plot(lines, name="loss-wide", wide=True, log=log, last=end),
            caption,
            phone_svg=line_plot(lines, name="loss", log=log, last=end),
        ),
        markup.columns(
            [
                _curve(run, "learning_rate", "Learning rate", "{:.3g}".format),
                _curve(run, "grad_norm", "Gradient norm, before clipping", units.figure, log=True),
            ]
        ),
    )


def held_out(run: RunData) -> str:
    """Bits per byte beside the baselines that need no model."""
    if words(run.summary, "stage") == "finetune":
        return ""  # what it learned and lost is told by the ledger
    ours = bits_per_byte(run)
    if ours is None and (other := scores.held_out(run)):
        return other
    if ours is None:
        reason = "The run has not been measured on held-out text."
        return markup.section("Held-out text", markup.missing(reason))
    bars = [Bar(name, value, units.figure(value)) for name, value in baselines(run)]
    caption = "Bits per byte, lower is better. " if bars else "No baselines were measured beside it. "
    caption += "The number does not depend on the tokenizer."
    facts = part(run.summary, "held_out")
    labels = {
        "perplexity": "Perplexity per token",
        "bits_per_byte": "Bits per byte",
        "nll": "Nats per token",
        "num_tokens": "Tokens scored",
        "num_bytes": "Bytes scored",
        "num_documents": "Documents scored",
    }
    # `num_bytes` counts text, where the exact number matters more than a round one.
    rows = [(labels.get(key, key), markup.shown("", facts[key])) for key in labels if key in facts]
    reference = part(run.summary, "reference")
    if reference:
        value = f"{markup.shown('', reference.get('value'))} {words(reference, 'unit', 60)}".strip()
        rows.append((f"Reference: {words(reference, 'name', 100)}", value))
    bars.append(Bar("this model", ours, units.figure(ours), ours=True))
    pieces = [markup.plot("Against what needs no model", bar_plot(bars, name="bits-per-byte"), caption)]
    if rows:
        pieces.append(markup.block("Measured", markup.table(rows)))
    if not run.curve("held_out_loss") and run.curve("held_out_bits_per_byte"):
        pieces.append(_curve(run, "held_out_bits_per_byte", "Held-out bits per byte", units.figure))
    return markup.section("Held-out text", markup.columns(pieces))


def cost(run: RunData) -> str:
    """Throughput, and planned against measured memory."""
    return markup.section("Speed and memory", markup.columns([_throughput(run), _memory(run)]))


def samples(run: RunData) -> str:
    """What the model writes."""
    found = run.summary.get("samples")
    items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    if not items:
        return markup.section("Samples", markup.missing("No samples: they are written when the run ends."))
    kind = _kind(run)
    pieces = []
    for item in items[:MAX_SAMPLES]:
        prompt, continuation = (words(item, key, MAX_SAMPLE_CHARACTERS) for key in ("prompt", "text"))
        continuation = continuation.removeprefix(prompt)
        settings = item.get("settings")
        if isinstance(settings, dict):
            settings = ", ".join(f"{name.lower()} {value}" for name, value in markup.rows_of(settings, {}))
        caption = f'<p class="muted">{markup.text(str(settings)[:300])}</p>' if settings else ""
        before = words(item, "before", MAX_SAMPLE_CHARACTERS)
        if "before" in item:
            caption += f'<p class="muted">Before it was trained:</p>\n<pre>{markup.text(before)}</pre>'
        truth = words(item, "truth", MAX_SAMPLE_CHARACTERS)
        if truth:
            caption += f'<p class="muted">The truth:</p>\n<pre>{markup.text(truth)}</pre>'
        gap = "\n\n" if kind != "decoder" else ""
        pieces.append(
            f'<div class="sample"><pre><span class="prompt">{markup.text(prompt)}</span>{gap}'
            f"{markup.text(continuation)}</pre>\n{caption}</div>"
        )
    note = markup.paragraph(_SAMPLE_NOTES.get(kind, _SAMPLE_NOTES["decoder"]))
    return markup.section("Samples", note, *pieces)


def use(run: RunData) -> str:
    """The next commands."""
    model = words(run.summary, "model", 1000) or str(run.directory / "model")
    commands, python = [], ""
    if state(run) != "finished":
        commands.append(f"trivium resume {shlex.quote(str(run.directory))}")
    if state(run) == "finished" or (run.directory / "model").is_dir():
        quoted = shlex.quote(model)
        kind = _kind(run)
        commands += [command.format(quoted) for command in _COMMANDS.get(kind, _COMMANDS["decoder"])]
        auto = _AUTO_CLASSES.get(kind, _AUTO_CLASSES["decoder"])
        python = (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(model)})\n"
            f"model = {auto}.from_pretrained({json.dumps(model)})"
        )
    return markup.section(
        "Use it next",
        markup.preformatted("\n".join(commands)),
        markup.paragraph("The model is an ordinary Hugging Face directory:") if python else "",
        markup.preformatted(python) if python else "",
    )


def reproduce(run: RunData) -> str:
    """Recipe, environment, events, and what is missing from this page."""
    recipe = run.recipe_text[:MAX_RECIPE_CHARACTERS]
    if len(recipe) < len(run.recipe_text):
        recipe += "\n[…]"
    machine = part(run.summary, "machine")
    versions = part(run.summary, "versions") or part(machine, "versions")
    tables = [("Versions", markup.rows_of(versions, {})), ("Machine", markup.rows_of(machine, {}))]
    environment = [markup.block(title, markup.table(rows)) for title, rows in tables if rows]
    events = [(f"Step {step:,}", event) for step, event in run.events]
    notes = list(run.notes)
    if run.non_finite:
        notes.append(f"{run.non_finite} logged values were NaN or infinite and are not drawn.")
    if not environment:
        notes.append("Versions and machine are not known: the run has not written its summary yet.")
    return markup.section(
        "Reproduce it",
        markup.folded("The resolved recipe (recipe.yaml)", markup.preformatted(recipe))
        if recipe
        else markup.missing("The recipe is left out: recipe.yaml is not there or cannot be read."),
        markup.columns(environment) if environment else "",
        markup.folded(f"Events ({len(events)})", markup.table(events)) if events else "",
        markup.listed("Left out of this page", notes) if notes else "",
    )


def _kind(run: RunData) -> str:
    """The kind of model, as the summary or the recipe tells it."""
    return words(part(run.summary, "model_facts"), "kind") or words(part(run.recipe, "model"), "kind") or "decoder"


def _curve(run: RunData, key: str, title: str, show: Callable[[float], str], *, log: bool = False) -> str:
    curve = run.curve(key)
    if not curve:
        return markup.block(title, markup.missing(f"Not logged: metrics.jsonl holds no {key}."))
    low, high = min(curve.values), max(curve.values)
    caption = f"From {show(low)} to {show(high)}; {show(curve.values[-1])} at last."
    svg = line_plot([Line(curve, title)], name=key, log=log and low > 0, last=run.last_step or 1)
    return markup.plot(title, svg, caption)


def _tokens_per_second(run: RunData) -> float | None:
    speed = number(run.summary, "tokens_per_second")
    if speed is not None:
        return speed
    values = sorted(run.curve("tokens_per_second").values)
    return values[len(values) // 2] if values else None


def _peak_bytes(run: RunData) -> float | None:
    peak = number(run.summary, "peak_bytes")
    return peak if peak is not None else max(run.curve("memory_bytes").values, default=None)


def _throughput(run: RunData) -> str:
    curve, title = run.curve("tokens_per_second"), "Throughput, tokens per second"
    if not curve:
        return markup.block(title, markup.missing("Not logged: metrics.jsonl holds no tokens_per_second."))
    middle = sorted(curve.values)[len(curve.values) // 2]
    caption = f"Median {middle:,.0f}."
    mfu = sorted(run.curve("mfu").values)
    if mfu:
        caption += f" Median model FLOP utilisation: {100 * mfu[len(mfu) // 2]:.0f} % of the machine's peak."
    tokens = run.curve("tokens").last
    if tokens:
        caption += f" {units.count(tokens)} tokens in all."
    line = Line(curve, title, smoothed=True)
    return markup.plot(title, line_plot([line], name="throughput", last=run.last_step or 1), caption)


def _memory(run: RunData) -> str:
    plan = part(run.summary, "plan")
    planned = number(run.summary, "planned_peak_bytes") or number(plan, "peak_bytes")
    measured = _peak_bytes(run)
    title = "Memory, planned against measured"
    if not planned and not measured:
        return markup.block(title, markup.missing("Neither a plan nor a measurement has been written yet."))
    sizes = [number(plan, key) or 0.0 for key in _PLAN_LABELS if key != "peak_bytes"]
    parts = tuple(size for size in sizes if size > 0)
    bars = []
    if planned:
        fits = parts if parts and abs(sum(parts) - planned) < 0.01 * planned else ()
        bars.append(Bar("Planned before the run", planned, units.size(planned), parts=fits))
    if measured:
        bars.append(Bar("Measured, highest", measured, units.size(measured), ours=True))
    caption = "The plan was not written." if not planned else "No measurement was written."
    if planned and measured:
        distance = 100 * (planned / measured - 1)
        side = "above" if distance >= 0 else "below"
        caption = f"The plan is {abs(distance):.0f} % {side} what was measured."
    rows = markup.rows_of({key: plan[key] for key in _PLAN_LABELS if key in plan}, _PLAN_LABELS)
    detail = markup.folded("The plan in parts", markup.table(rows)) if rows else ""
    return "<div>\n" + markup.plot(title, bar_plot(bars, name="memory"), caption) + f"\n{detail}</div>"
