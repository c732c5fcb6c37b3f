"""Planned against measured memory: every run in a process of its own, its plan made before it begins.

Three families in three sizes, fp32 and bf16, with different numbers of rows and positions: pretraining with and without
recomputed activations (two micro-batches a step, three steps), evaluation, generation, and beam search. What counts is
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers.planning_worker import Case
from workers.process import circumstances, say

# (vocabulary, width, layers, heads): 1 to 30 million parameters.
SIZES = {"small": (1024, 128, 4, 4), "medium": (4096, 256, 6, 4), "large": (8192, 448, 8, 7)}
# (rows, positions of a row or target, positions of a source) of each size, for training and evaluation.
LOADS: dict[str, dict[str, tuple[int, int, int]]] = {
    "decoder": {"small": (16, 128, 0), "medium": (8, 256, 0), "large": (3, 320, 0)},
    "encoder": {"small": (32, 64, 0), "medium": (6, 320, 0), "large": (8, 128, 0)},
    "encoder-decoder": {"small": (24, 48, 96), "medium": (8, 96, 160), "large": (4, 64, 128)},
}
STAGES = ("pretrain", "checkpointing", "evaluate", "generate", "beams")
PRECISIONS = ("fp32", "bf16")
# The bounds that the table is judged by.
MEDIAN_BOUND, WORST_BOUND = 0.05, 0.15


def cases(threads: int) -> list[Case]:
    """All runs."""
    found = []
    for family, loads in LOADS.items():
        for size, (rows, length, source) in loads.items():
            vocabulary, width, layers, heads = SIZES[size]
            for precision in PRECISIONS:
                for stage in STAGES:
                    if stage in ("generate", "beams") and family == "encoder":
                        continue
                    if stage == "beams" and (size == "small" or precision == "bf16"):
                        continue
                    found.append(
                        Case(
                            family,
                            vocabulary,
                            width,
                            layers,
                            heads,
                            precision,
                            stage,
                            rows,
                            length,
                            source,
                            threads=threads,
                        )
                    )
    return found


def run(case: Case) -> dict[str, Any]:
    """One run: {"case", "plan", "measured_bytes", "error"}; the error is relative to what was measured."""
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
    return answer | {"others": others(case)}


def others(case: Case) -> dict[str, int]:
    """Bytes by the factor of four and, where it is installed, by `accelerate estimate-memory`."""
    from trivium.models.counts import num_parameters

    trains = case.stage in ("pretrain", "checkpointing")
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
    """Median and worst errors of the plan and of the others; theirs also without the process."""
    facts: dict[str, Any] = {"runs": len(results), "plan": _median_and_worst([abs(r["error"]) for r in results])}
    for name in ("accelerate", "factor_of_four"):
        answered = [r for r in results if name in r["others"]]
        if answered:
            whole = [abs(r["others"][name] / r["measured_bytes"] - 1) for r in answered]
            beyond = [abs(r["others"][name] / beyond_framework(r) - 1) for r in answered]
            facts[name] = _median_and_worst(whole)
            facts[f"{name}, framework left out"] = _median_and_worst(beyond)
    return facts


def beyond_framework(result: dict[str, Any]) -> int:
    """What a run was measured to need, without the process's own size."""
    needed: int = result["measured_bytes"] - result["plan"]["framework_bytes"]
    return max(1, needed)


def _median_and_worst(errors: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(errors), "worst": max(errors)}


def keeps_the_bounds(facts: dict[str, Any]) -> bool:
    """Whether the plans are as good as promised."""
    return bool(facts["plan"]["median"] <= MEDIAN_BOUND and facts["plan"]["worst"] <= WORST_BOUND)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown, sizes in MB."""
    head = "| model | parameters | stage | precision | rows x length | planned | measured | error | factor of four |"
    lines = [head + " accelerate |", "|---" * 10 + "|"]
    for result in results:
        case = Case(**result["case"])
        length = f"{case.rows} x {case.length}" + (f" ({case.source_length})" if case.source_length else "")
        sizes = [result["plan"]["peak_bytes"], result["measured_bytes"]]
        theirs = [result["others"].get(name) for name in ("factor_of_four", "accelerate")]
        cells = [
            case.family,
            f"{result['parameters'] / 1e6:.1f} M",
            case.stage,
            case.precision,
            length,
            *(f"{size / 1e6:.0f}" for size in sizes),
            f"{100 * result['error']:+.1f} %",
            *("" if size is None else f"{size / 1e6:.0f}" for size in theirs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(facts: dict[str, Any]) -> str:
    """The summary in Markdown."""
    lines = ["| estimate | median error | worst error |", "|---|---|---|"]
    for name, values in facts.items():
        if isinstance(values, dict):
            lines.append(f"| {name.replace('_', ' ')} | {values['median']:.1%} | {values['worst']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    parser.add_argument("--threads", type=int, default=0, help="compute threads of each run (0: torch chooses)")
    parser.add_argument("--only", default="", help="only runs whose name contains this (e.g. 'bf16 pretrain')")
    options = parser.parse_args()
    results = []
    for case in cases(options.threads):
        if options.only in case.name:
            result = run(case)
            from trivium.models.counts import num_parameters

            result["parameters"] = num_parameters(case.config())
            results.append(result)
            say(f"  {case.name}: {100 * result['error']:+.1f} %")
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
