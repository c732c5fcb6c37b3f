"""The stages every quickstart begins with: a tokenizer, a model of the right size, and its pretraining."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from trivium.config import build_settings
from trivium.data.prepare import prepare, training_texts
from trivium.files import write_atomically
from trivium.machine import peak_product_flops
from trivium.models.config import Kind, ModelConfig
from trivium.planner.statement import PART_NAMES, available_bytes, state_plan
from trivium.pretraining.planning import memory_from_now
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.progress import short_bytes, short_number, short_time
from trivium.quickstart.sizing import USUAL_UTILISATION, shape_for, time_steps
from trivium.quickstart.state import FAMILY, MASK_SHARE, PRETRAINING_SHARE, SEED, TRIED, VOCABULARY, Quickstart
from trivium.runtime import Runtime, choose_runtime, prepare_process
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.settings import TrainingSettings

PROMPTS: dict[Kind, list[str]] = {
    "decoder": ["import os\n", "def read_lines(path):\n    ", "class Stack:\n    ", '"""This module provides'],
    "encoder": ["import [MASK]\n", "for i in [MASK](10):\n    print(i)", "def __init__([MASK], name):"],
    "encoder-decoder": [],
}
# Seconds kept back for the measures after training, per million held-out bytes, and for samples and the report.
MEASURE_SHARE, CLOSING_SECONDS = 0.06, 12.0
# And for packing the model in 8 bits and measuring that, at the end: so much, or a share of a short quickstart.
PACKING_SECONDS, PACKING_SHARE = 15.0, 0.05
# Time steps get at the least, however short the quickstart.
LEAST_SECONDS = 10.0
# What is not known before there is a tokenizer: seconds that learning it and tokenizing take for each million bytes of
# text, and the bytes of a token.
TOKENIZING_SECONDS, USUAL_BYTES_PER_TOKEN = 1.5, 3.7
PLAN = "plan.json"
# Parts of the memory that are a smaller share than this are not shown one by one.
LEAST_SHARE = 0.03
MIN_STEPS = 20
# So many times through the text a model of these sizes still gains; a fast machine ends early instead of overfitting.
# What is masked or cut out is drawn anew in each epoch, which wears the text out more slowly.
MOST_EPOCHS: dict[Kind, int] = {"decoder": 8, "encoder": 40, "encoder-decoder": 20}
EVALUATIONS = 8
LEARNING_RATE = 3e-3
OBJECTIVES: dict[Kind, dict[str, Any]] = {
    "decoder": {"name": "causal"},
    "encoder": {"name": "masked", "mask_share": MASK_SHARE},
    "encoder-decoder": {"name": "spans"},
}


def learn_tokenizer(state: Quickstart) -> None:
    """Learn byte-pair merges from the standard library, the part that is trained on."""
    folder = state.out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        texts = training_texts(state.data)
        Tokenizer.train(texts=texts, vocab_size=VOCABULARY, kind=state.kind, progress=state.progress).save(folder)
    tokenizer = Tokenizer.load(folder)
    shards = prepare(state.data, tokenizer, progress=state.progress).train[0][0]  # pretraining finds them there
    state.tokens = shards.num_tokens
    state.table["text"] = f"{shards.num_documents} modules of the standard library, {short_bytes(shards.num_bytes)}"
    state.table["tokenizer"] = (
        f"{tokenizer.vocab_size} entries, {shards.num_bytes / shards.num_tokens:.2f} bytes a token, "
        f"{short_number(shards.num_tokens)} tokens"
    )


def choose_size(state: Quickstart) -> None:
    """Choose the model for this machine and time, and say what it needs, before anything is read or written."""
    if _saved_recipe(state).is_file():
        return
    data, kind = state.data, state.kind
    runtime = choose_runtime(seed=SEED)
    prepare_process(runtime)
    text_bytes = sum(len(text) for text in training_texts(data))
    rate = (peak_product_flops(runtime.device, runtime.precision) or 1e11) * USUAL_UTILISATION
    seconds = max(LEAST_SECONDS, _budget(state, 1e-6 * text_bytes * TOKENIZING_SECONDS))
    most_tokens = MOST_EPOCHS[kind] * text_bytes / USUAL_BYTES_PER_TOKEN
    state.model = shape_for(rate * seconds, VOCABULARY, data.sequence_length, most_tokens, kind)
    state.plan = memory_from_now(_recipe(state, state.model, runtime, MIN_STEPS), runtime)
    state_plan(
        state.plan,
        "this quickstart",
        device=runtime.device,
        ignore=state.ignore_plan,
        suggest=lambda: ["fewer --minutes: a smaller model"],
        progress=state.progress,
    )
    state.progress.note(
        f"planned time: {short_time(60 * state.minutes)}, of which {short_time(seconds)} to pretrain a model of width "
        f"{state.model.width} with {state.model.layers} layers"
    )


def choose_steps(state: Quickstart) -> None:
    """Time real steps of the model, and take as many as fill the time."""
    if _saved_recipe(state).is_file():
        return
    data, kind, model, plan = state.data, state.kind, state.model, state.plan
    assert model is not None and plan is not None
    runtime = choose_runtime(seed=SEED)
    training = TrainingSettings(steps=1, precision=runtime.precision)
    state.progress.note(f"timing steps of a model of width {model.width} with {model.layers} layers")
    seconds = time_steps(
        model, runtime, training, data.rows_per_step, data.rows_per_micro_batch, min(10.0, 0.03 * _budget(state))
    )
    budget = _budget(state)
    # An evaluation reads its rows once, forward only: about a third of what training on them takes.
    evaluation = seconds * (data.evaluation_rows or 0) / data.rows_per_step / 3
    most_steps = MOST_EPOCHS[kind] * state.tokens // (data.rows_per_step * data.sequence_length)
    steps = max(MIN_STEPS, min(most_steps, int((budget - EVALUATIONS * evaluation) / seconds)))
    state.recipe = _recipe(state, model, runtime, steps)
    hours = (steps * seconds + EVALUATIONS * evaluation) / 3600
    state.progress.note(f"planned time: {short_time(3600 * hours)} for {steps} steps of pretraining")
    facts = {**plan.to_dict(), "hours": hours, "available_bytes": available_bytes(runtime.device)}
    write_atomically(state.out / PLAN, json.dumps(facts, indent=2) + "\n")


def _saved_recipe(state: Quickstart) -> Path:
    """The recipe of a quickstart that has come as far as pretraining."""
    return state.out / "pretrain" / "recipe.yaml"


def _recipe(state: Quickstart, model: ModelConfig, runtime: Runtime, steps: int) -> PretrainRecipe:
    """The pretraining run of a model of that shape, with the tokenizer where there is one already."""
    learned = state.out / "tokenizer"
    return build_settings(
        PretrainRecipe,
        {
            "run": str(state.out / "pretrain"),
            "seed": SEED,
            "device": runtime.torch_device().type,
            "ignore_plan": state.ignore_plan,
            "tokenizer": {"path": str(learned) if learned.is_dir() else None, "vocab_size": VOCABULARY},
            "data": state.data,
            "objective": OBJECTIVES[state.kind],
            "model": {"family": FAMILY[state.kind], **model.model_dump(exclude_unset=True)},
            "training": {
                "steps": steps,
                "precision": runtime.precision,
                "learning_rate": LEARNING_RATE,
                "schedule": "wsd",
                "decay_fraction": 0.4,
                "final_learning_rate_ratio": 0.0,
                "evaluate_every_steps": max(1, steps // EVALUATIONS),
                "save_every_steps": max(1, steps // 4),
            },
            "sample_prompts": PROMPTS[state.kind],
        },
        "quickstart",
    )


def tell_plan(state: Quickstart) -> None:
    """The plan as the first rows of the table."""
    file = state.out / PLAN
    if not file.is_file():  # the run was begun before there was one
        return
    plan = json.loads(file.read_text())
    state.results["plan"] = plan
    rows = {
        "planned memory": f"{short_bytes(plan['peak_bytes'])} of {short_bytes(plan['available_bytes'])} available",
        **{
            f"  {name}": short_bytes(plan[key])
            for key, name in PART_NAMES.items()
            if plan.get(key, 0) >= LEAST_SHARE * plan["peak_bytes"]
        },
        "planned time": f"{short_time(3600 * plan['hours'])} of pretraining",
    }
    state.table = {**rows, **state.table}


def _budget(state: Quickstart, before: float = 0.0) -> float:
    """Seconds for the steps of pretraining; `before`: of what is still to be done before them."""
    packing = min(PACKING_SECONDS, PACKING_SHARE * 60 * state.minutes)
    left = PRETRAINING_SHARE[state.kind] * (state.seconds_left - before - packing)
    return left * (1 - MEASURE_SHARE) - CLOSING_SECONDS


def learn_language(state: Quickstart) -> None:
    """Pretrain, measure, sample, report: one run of the ordinary kind."""
    if state.recipe is None:
        state.progress.note(f"going on with the run in {state.out / 'pretrain'}")
        state.summary = resume(state.out / "pretrain", state.progress, ignore_plan=state.ignore_plan)
    else:
        state.summary = pretrain(state.recipe, state.progress)
    summary, facts = state.summary, state.summary["model_facts"]
    state.table |= {
        "model": f"{short_number(facts['parameters'])} parameters, {facts['layers']} layers of width {facts['width']}",
        "training": (
            f"{summary['steps']} steps, {short_number(summary['tokens'])} tokens, "
            f"{short_number(summary['tokens_per_second'])} tokens/s"
        ),
        "memory": (
            f"{short_bytes(summary['peak_bytes'])} at most, {short_bytes(summary['planned_peak_bytes'])} planned "
            f"({summary['planned_peak_bytes'] / summary['peak_bytes'] - 1:+.0%})"
        ),
        **_held_out_rows(state),
    }
    model, run = (shlex.quote(summary[key]) for key in ("model", "run"))
    state.next.append(TRIED[state.kind].format(model))
    if state.kind == "decoder":
        state.next.append(f"trivium metric perplexity {model} --file {model}/README.md")
    state.next.append(f"trivium pretrain {run}/recipe.yaml run=runs/longer training.steps={4 * summary['steps']}")


def _held_out_rows(state: Quickstart) -> dict[str, str]:
    """What was measured on held-out text, as rows of the table."""
    held_out, baselines = state.summary["held_out"], state.summary.get("baselines", {})
    if state.kind == "decoder":
        return {
            "held-out text": f"{held_out['bits_per_byte']:.3f} bits per byte (perplexity {held_out['perplexity']:.1f})",
            "  xz -9e": f"{baselines['xz_bits_per_byte']:.3f} bits per byte on the same text",
            "  unigram entropy": f"{baselines['unigram_bits_per_byte']:.3f} bits per byte, same tokenizer",
        }
    if state.kind == "encoder-decoder":
        accuracy = 100 * held_out["target_accuracy"]
        return {"held-out spans": f"{held_out['target_loss']:.3f} nats a token, {accuracy:.1f} % of tokens right"}
    right = 100 * held_out["masked_accuracy"]
    return {
        "held-out masks": f"{right:.1f} % filled rightly ({held_out['masked_loss']:.3f} nats)",
        "  commonest token": f"{100 * baselines['commonest_token_accuracy']:.1f} % would be right",
        "for example": filled_line(state.summary["samples"]),
    }


def filled_line(samples: list[dict[str, Any]]) -> str:
    """A line of held-out text with something hidden, what the model put there, and what stood there."""
    for sample in samples:
        sides = [sample.get(key, "").splitlines() for key in ("prompt", "text", "truth")]
        for hidden, filled, truth in zip(*sides, strict=False):
            if "[MASK]" in hidden and len(hidden.strip()) > len("[MASK]"):
                return f"{hidden.strip()!r} becomes {filled.strip()!r}; its author wrote {truth.strip()!r}"
    return "no line of the samples has a mask"
