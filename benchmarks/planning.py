"""Planned against measured memory: every run in a process of its own, its plan made before it begins.

Three families in three sizes, fp32 and bf16, with different numbers of rows and positions: pretraining with and without
recomputed activations (two micro-batches a step, two steps), fine-tuning by each kind of method, evaluation,
generation, and beam search. What counts is
the peak of the whole process, interpreter and libraries included, as the system reports it.

Beside the plan stand two answers that others give on the same runs: what `accelerate estimate-memory` says (its own
functions, given the model's size), and the factor of four (four times the fp32 weights to train, the weights to use).
Both know neither rows, positions nor the process; so they are also judged without the process, on what the run needed
beyond the framework.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from workers.planning_worker import Case
from workers.process import circumstances, say

# (vocabulary, width, layers, heads): 1, 6 and 40 million parameters. An encoder-decoder has as many layers twice.
SIZES = {"small": (1024, 128, 4, 4), "medium": (4096, 256, 6, 4), "large": (16384, 640, 6, 10)}
LARGE_TWO_STACKS = 3
# (rows, positions of a row or target, positions of a source) for training, and for what keeps nothing for a backward
# pass. The largest need three times what the process takes by itself, or more.
Load = tuple[int, int, int]
LOADS: dict[str, dict[str, tuple[Load, Load]]] = {
    "decoder": {
        "small": ((16, 128, 0), (16, 128, 0)),
        "medium": ((8, 256, 0), (12, 192, 0)),
        "large": ((2, 384, 0), (16, 512, 0)),
    },
    "encoder": {
        "small": ((32, 64, 0), (32, 64, 0)),
        "medium": ((6, 320, 0), (24, 320, 0)),
        "large": ((6, 128, 0), (24, 384, 0)),
    },
    "encoder-decoder": {
        "small": ((24, 48, 96), (24, 48, 96)),
        "medium": ((8, 96, 160), (16, 96, 160)),
        "large": ((4, 96, 192), (24, 256, 256)),
    },
}
STAGES = ("pretrain", "checkpointing", "evaluate", "generate", "beams")
# (method, base) of fine-tuning, each at one size of the three families.
METHODS = (
    *((method, "fp32") for method in ("none", "norms", "last_layers", "lora", "houlsby", "prompt")),
    ("lora", "int4"),
)
TUNED_SIZE = "medium"
PRECISIONS = ("fp32", "bf16")
ESTIMATES = ("plan", "accelerate", "factor_of_four")
# The bounds that the table is judged by.
MEDIAN_BOUND, WORST_BOUND = 0.05, 0.15
# Runs that add less than this share to the process are not judged without it.
LEAST_SHARE = 0.25


def cases(threads: int) -> list[Case]:
    """All runs."""
    return [
        case_of(family, size, precision, stage, threads)
        for family in LOADS
        for size in SIZES
        for precision in PRECISIONS
        for stage in STAGES
        if family != "encoder" or stage not in ("generate", "beams")
        if stage != "beams" or (size != "small" and precision == "fp32")
    ]


def tuned_cases(threads: int) -> list[Case]:
    """Runs that fine-tune, by every method; packed weights come from a model that was dense, whose size is the peak."""
    return [
        replace(case_of(family, TUNED_SIZE, "fp32", "pretrain", threads), stage="finetune", method=method, base=base)
        for family in LOADS
        for method, base in METHODS
    ]


def case_of(family: str, size: str, precision: str, stage: str, threads: int) -> Case:
    """One run; beams multiply rows, so that there are fewer of them."""
    vocabulary, width, layers, heads = SIZES[size]
    if size == "large" and family == "encoder-decoder":
        layers = LARGE_TWO_STACKS
    training, passing = LOADS[family][size]
    rows, length, source = training if stage in ("pretrain", "checkpointing", "beams") else passing
    return Case(
        family, vocabulary, width, layers, heads, precision, stage, rows, length, source_length=source, threads=threads
    )


def run(case: Case) -> dict[str, Any]:
    """One run: {"case", "plan", "measured_bytes", "given_back", "error"}; the error is relative to what was measured.

    `given_back`: how often the process gave freed memory back to keep to its plan.
    """
    worker = Path(__file__).resolve().parent / "workers" / "planning_worker.py"
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(case.threads)} if case.threads else {})}
    done = subprocess.run(
        [sys.executable, str(worker), json.dumps(asdict(case))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    answer["error"] = answer["plan"]["peak_bytes"] / answer["measured_bytes"] - 1
    return answer


def others(case: Case) -> dict[str, int]:
    """Bytes by the factor of four and, where it is installed, by `accelerate estimate-memory`.

    That command knows models on the hub only; these are the figures it would print: "Training using Adam" to train,
    "Total Size" to use (its test compares with its output).
    """
    from trivium.models.counts import num_parameters

    trains = case.stage in ("pretrain", "checkpointing", "finetune")
    weights = 4 * num_parameters(case.config())
    stored = weights if case.precision == "fp32" else weights // 2
    answers = {"factor_of_four": 4 * weights if trains else stored}
    try:
        from accelerate.commands.estimate import estimate_training_usage
    except ImportError:
        return answers
    name = "float32" if case.precision == "fp32" else "bfloat16"
    answers["accelerate"] = max(estimate_training_usage(weights, name).values()) if trains else stored
    return answers


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst errors of the plan and of the others, of the whole process and of what a run adds to it."""
    facts: dict[str, Any] = {"runs": len(results)}
    for name in ESTIMATES:
        answered = [r for r in results if name == "plan" or name in r["others"]]
        if not answered:
            continue
        facts[name] = _errors([_estimate(r, name) / r["measured_bytes"] - 1 for r in answered])
        more = [r for r in answered if needs_more(r)]
        if more:
            facts[f"{name}, framework left out"] = _errors([_beyond(r, name) / beyond_framework(r) - 1 for r in more])
    return facts


def _estimate(result: dict[str, Any], name: str) -> int:
    """The bytes that an estimate says."""
    size: int = result["plan"]["peak_bytes"] if name == "plan" else result["others"][name]
    return size


def _beyond(result: dict[str, Any], name: str) -> int:
    """The same without the process; the others do not count it."""
    process: int = result["plan"]["framework_bytes"] if name == "plan" else 0
    return _estimate(result, name) - process


def beyond_framework(result: dict[str, Any]) -> int:
    """What a run was measured to need, without the process's own size."""
    needed: int = result["measured_bytes"] - result["plan"]["framework_bytes"]
    return needed


def needs_more(result: dict[str, Any]) -> bool:
    """Whether a run adds enough to the process that this can be told from what the process varies by."""
    return beyond_framework(result) >= LEAST_SHARE * result["plan"]["framework_bytes"]


def _errors(errors: Sequence[float]) -> dict[str, float]:
    """Median and worst of their sizes; how many were too small, and by how much the worst of those."""
    sizes = [abs(error) for error in errors]
    return {
        "median": statistics.median(sizes),
        "worst": max(sizes),
        "runs": len(errors),
        "below": sum(error < 0 for error in errors),
        "worst_below": max(0.0, -min(errors)),
    }


def keeps_the_bounds(facts: dict[str, Any]) -> bool:
    """Whether the plans are as good as promised."""
    return bool(facts["plan"]["median"] <= MEDIAN_BOUND and facts["plan"]["worst"] <= WORST_BOUND)


def cost_of_keeping(precision: str, threads: int, rounds: int) -> dict[str, Any]:
    """Steps of `benchmarks/training.py`'s small shape with and without keeping to their plan, in alternation.

    Counted is each process's own processor time, so that other work on the machine matters little.
    {"speed": with over without, the median of the rounds, "rounds": each round's, "given_back", "planned_bytes",
    "peak_bytes": (with, without)}.
    """
    from workers import ceiling_worker
    from workers.process import Worker
    from workers.training_worker import Job

    job = Job("trivium-llama", precision, 8192, 384, 6, 6, length=256, rows=16, threads=threads)
    workers = [Worker(f"keeps={keeps}", ceiling_worker.arguments(job, keeps), threads) for keeps in (True, False)]
    try:
        for worker in workers:
            worker.ask("run 2")
        found = []
        for number in range(rounds):
            turn = workers if number % 2 else workers[::-1]
            seconds = {worker.name: worker.ask("run 1")["seconds"] for worker in turn}
            found.append(seconds[workers[1].name] / seconds[workers[0].name])
            say(f"  {precision}, round {number + 1} of {rounds}: {found[-1]:.3f}")
        last = [worker.close() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return {
        "speed": statistics.median(found),
        "rounds": found,
        "given_back": last[0]["given_back"],
        "planned_bytes": workers[0].facts["planned_bytes"],
        "peak_bytes": [answer["peak_bytes"] for answer in last],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown, sizes in MB."""
    head = "| model | parameters | stage | precision | rows x length | planned | measured | error | beyond |"
    lines = [head + " given back | factor of four | accelerate |", "|---" * 12 + "|"]
    for result in results:
        case = Case(**result["case"])
        length = f"{case.rows} x {case.length}" + (f" ({case.source_length})" if case.source_length else "")
        sizes = [result["plan"]["peak_bytes"], result["measured_bytes"]]
        theirs = [result["others"].get(name) for name in ("factor_of_four", "accelerate")]
        cells = [
            case.family,
            f"{result['parameters'] / 1e6:.1f} M",
            case.stage if case.stage != "finetune" else f"finetune, {case.method} over {case.base}",
            case.precision,
            length,
            *(f"{size / 1e6:.0f}" for size in sizes),
            f"{100 * result['error']:+.1f} %",
            f"{100 * (_beyond(result, 'plan') / beyond_framework(result) - 1):+.1f} %" if needs_more(result) else "",
            str(result["given_back"] or ""),
            *("" if size is None else f"{size / 1e6:.0f}" for size in theirs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(facts: dict[str, Any]) -> str:
    """The summary in Markdown."""
    head = "| estimate | median error | worst error | too small in | by at most |"
    lines = [head, "|---" * 5 + "|"]
    for name, values in facts.items():
        if isinstance(values, dict):
            cells = [name.replace("_", " "), f"{values['median']:.1%}", f"{values['worst']:.1%}"]
            cells += [f"{values['below']} of {values['runs']}", f"{values['worst_below']:.1%}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--threads", type=int, default=0, help="compute threads of each run (0: torch chooses)")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at once (their memory is their own)")
    parser.add_argument("--only", default="", help="only runs whose name contains this (e.g. 'bf16 pretrain')")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="measure what keeping to a plan costs")
    options = parser.parse_args()
    if options.speed:
        costs = {name: cost_of_keeping(name, options.threads, options.speed) for name in PRECISIONS}
        sys.stdout.write(json.dumps(costs, indent=1) + "\n")
        return
    from trivium.models.counts import num_parameters

    def judged(case: Case) -> dict[str, Any]:
        result = run(case) | {"others": others(case), "parameters": num_parameters(case.config())}
        say(f"  {case.name}: {100 * result['error']:+.1f} %")
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        every = [*cases(options.threads), *tuned_cases(options.threads)]
        results = list(pool.map(judged, [case for case in every if options.only in case.name]))
    if not results:
        raise SystemExit(f"no run's name contains {options.only!r}")
    facts = summary(results)
    text = verdict(facts) + "\n\n" + table(results) + "\n"
    sys.stdout.write(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        told = circumstances(["torch", "accelerate"])
        options.json.write_text(
            json.dumps({"circumstances": told, "seed": 0, "summary": facts, "runs": results}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
