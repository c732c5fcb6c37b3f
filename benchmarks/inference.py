"""Inference speed and memory beside the peers, in one run: the same model, the same prompts, the same cores.

Contenders take turns, each in a warm process of its own; what counts is the ratio within a round. All continue the same
ids greedily, by the same number of tokens:

  trivium-*       ours: fp32, bf16, and packed int8 and int4 (which compute in --packed-dtype) and int8_dynamic (which
                  rounds activations to int8, too, as llama.cpp and CTranslate2 do); -kv8 keeps keys and values in
                  int8, -lookup proposes tokens by looking them up in the text before (same tokens)
  transformers-*  AutoModelForCausalLM.generate in fp32 and bf16
  llama.cpp-*     through llama-cpp-python's C functions: the shipped file (Q4_1), and files that `trivium export` wrote
  ctranslate2-*   converted in the run from a Hugging Face directory

Figures: decode of one text and of eight (tokens/s in sum, the first token's time taken off), prefill of a long prompt,
decode of a text that repeats itself, seconds from the start of the process to the first token, and peak memory of the
process: with one text, and after all. A contender whose library is absent is left out and named.

The result is a markdown table on stdout, with the goals that were set before; --json writes everything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workers import inference_files, inference_worker
from workers.inference_files import Order
from workers.inference_worker import Job
from workers.process import Worker, circumstances, say

PACKAGES = ("trivium", "torch", "transformers", "llama_cpp_python", "ctranslate2", "numpy")
MODULES = {"transformers": "transformers", "llama.cpp": "llama_cpp", "ctranslate2": "ctranslate2"}
"""What must be installed for an engine."""
ROWS = 8
LOOKUP_TOKENS = 8
"""How many tokens -lookup proposes at a time."""
# The measured figures: (key, heading, digits).
FIGURES = (
    ("decode1", "decode, 1 text", 0),
    ("decode8", f"decode, {ROWS} texts", 0),
    ("prefill", "prefill", 0),
    ("copy", "decode, repeating text", 0),
    ("start", "start to first token, s", 2),
)
IMPORT_TORCH = "import torch"
# The threads of some libraries wait for more work by spinning, for up to 0.2 s, and would do so into the next turn.
PAUSE_SECONDS = 0.25


@dataclass(frozen=True)
class Contender:
    """One line of the table."""

    name: str
    engine: str
    format: str
    """What it reads, as `workers/inference_files.py` names it."""
    dtype: str = "fp32"
    settings: dict[str, Any] = field(default_factory=dict)


def contenders(packed_dtype: str) -> list[Contender]:
    """All of them."""
    ours = [
        Contender(f"trivium-{kind}{suffix}", "trivium", f"trivium-{kind}", packed_dtype, settings)
        for kind in ("int8", "int4")
        for suffix, settings in (
            ("", {}),
            ("-kv8", {"kv_cache": "int8"}),
            ("-lookup", {"speculate": LOOKUP_TOKENS}),
        )
    ]
    ours.append(Contender("trivium-int8_dynamic", "trivium", "trivium-int8_dynamic", packed_dtype))
    return [
        Contender("trivium-fp32", "trivium", "hf-fp32"),
        Contender("trivium-bf16", "trivium", "hf-bf16", "bf16"),
        *ours,
        Contender("transformers-fp32", "transformers", "hf-fp32"),
        Contender("transformers-bf16", "transformers", "hf-bf16", "bf16"),
        Contender("llama.cpp-shipped", "llama.cpp", "shipped"),
        *(Contender(f"llama.cpp-{kind}", "llama.cpp", f"gguf-{kind}") for kind in ("bf16", "q8_0", "q4_0")),
        *(Contender(f"ctranslate2-{kind}", "ctranslate2", f"ctranslate2-{kind}") for kind in ("fp32", "int8")),
    ]


@dataclass(frozen=True)
class Goal:
    """A ratio worth reporting: the best of ours over the best of theirs."""

    name: str
    figure: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    at_least: float | None
    """What it ought to be; None: only reported."""


PLAIN = ("trivium-fp32", "trivium-bf16", "trivium-int8", "trivium-int4", "trivium-int8_dynamic")
FRAMEWORKS = ("transformers-fp32", "transformers-bf16", "ctranslate2-fp32", "ctranslate2-int8")
LLAMA = ("llama.cpp-shipped", "llama.cpp-bf16", "llama.cpp-q8_0", "llama.cpp-q4_0")
GOALS = (
    Goal("one text, 8 bits", "decode1", ("trivium-int8",), ("llama.cpp-q8_0",), 1.0),
    Goal("one text, 4 bits", "decode1", ("trivium-int4",), ("llama.cpp-q4_0",), 1.0),
    Goal("one text, bf16", "decode1", ("trivium-bf16",), ("llama.cpp-bf16",), None),
    Goal("one text, bf16, beside transformers", "decode1", ("trivium-bf16",), ("transformers-bf16",), None),
    Goal("one text, fp32, beside transformers", "decode1", ("trivium-fp32",), ("transformers-fp32",), None),
    Goal(f"{ROWS} texts, best of ours and of the frameworks", "decode8", PLAIN, FRAMEWORKS, 3.0),
    Goal(f"{ROWS} texts, best of ours and of llama.cpp", "decode8", PLAIN, LLAMA, None),
    Goal("prefill, best of ours and of all", "prefill", PLAIN, (*FRAMEWORKS, *LLAMA), 1.5),
    Goal("repeating text, looked up, 8 bits", "copy", ("trivium-int8-lookup",), ("trivium-int8",), None),
)
START_GOAL_SECONDS = 0.5
"""Our start may take so much longer than importing torch does."""


@dataclass
class Result:
    """What one contender did: for each figure one value per round."""

    contender: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    """What it wrote, by workload."""
    peak_bytes_one_text: int = 0
    peak_bytes: int = 0

    def median(self, figure: str) -> float | None:
        """The middle round; None where it was not measured."""
        return statistics.median(self.rounds[figure]) if self.rounds.get(figure) else None


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    new_tokens: int
    prefill_tokens: int
    threads: int


def measure(jobs: Sequence[Job], plan: Plan) -> list[Result]:
    """Let the jobs take turns at each figure."""
    workers: list[Worker] = []
    results = [Result(job.contender) for job in jobs]
    try:
        for job, result in zip(jobs, results, strict=True):
            say(f"  warming up {job.contender}")
            workers.append(start(job))
            warm_up(workers[-1], result, plan)
        for number in range(plan.rounds):
            for figure in ("prefill", "decode1", "decode8", "copy"):
                for job, worker, result in zip(jobs, workers, results, strict=True):
                    if figure != "copy" or job.engine == "trivium":
                        result.rounds.setdefault(figure, []).append(pace(worker, figure, plan))
            say(f"  round {number + 1} of {plan.rounds}")
        for worker, result in zip(workers, results, strict=True):
            result.peak_bytes = worker.close()["peak_bytes"]
    finally:
        for worker in workers:
            worker.kill()
    return results


def start(job: Job) -> Worker:
    """The contender's process, which has written its first token."""
    return Worker(job.contender, inference_worker.arguments(job), job.threads)


def warm_up(worker: Worker, result: Result, plan: Plan) -> None:
    """Each workload once; the memory of a single text is told before eight are continued."""
    worker.ask("run prefill 1")
    result.tokens["decode1"] = worker.ask(f"run decode1 {plan.new_tokens}")["tokens"]
    result.peak_bytes_one_text = worker.ask("peak")["peak_bytes"]
    result.tokens["decode8"] = worker.ask(f"run decode8 {plan.new_tokens}")["tokens"]
    result.tokens["copy"] = worker.ask(f"run copy {plan.new_tokens}")["tokens"]


def pace(worker: Worker, figure: str, plan: Plan) -> float:
    """Tokens per second of one turn: of the prompt, or of what is written after the first token."""
    time.sleep(PAUSE_SECONDS)
    first = worker.ask(f"run {figure} 1")["seconds"]
    if figure == "prefill":
        return float(plan.prefill_tokens / first)
    whole = worker.ask(f"run {figure} {plan.new_tokens}")["seconds"]
    rows = ROWS if figure == "decode8" else 1
    # Where something disturbed the first call so much, the pace is at least this.
    return float(rows * (plan.new_tokens - 1) / (whole - first if whole > first else whole))


def measure_starts(jobs: Sequence[Job], results: Sequence[Result], rounds: int) -> list[float]:
    """Seconds from a process's start to its first token, of each contender; returns those of importing torch."""
    torch = Job(IMPORT_TORCH, "torch", "", "", threads=jobs[0].threads if jobs else 0)
    imports = []
    for number in range(rounds):
        for job, result in zip(jobs, results, strict=True):
            time.sleep(PAUSE_SECONDS)
            worker = start(job)
            worker.kill()
            result.rounds.setdefault("start", []).append(worker.seconds)
        worker = start(torch)
        worker.kill()
        imports.append(worker.seconds)
        say(f"  starts {number + 1} of {rounds}")
    return imports


def ratio(goal: Goal, results: Sequence[Result]) -> dict[str, Any] | None:
    """The best of ours over the best of theirs: the median of the rounds' ratios. None where one side is absent."""
    ours = _best(goal.ours, goal.figure, results)
    theirs = _best(goal.theirs, goal.figure, results)
    if ours is None or theirs is None:
        return None
    rounds = zip(ours.rounds[goal.figure], theirs.rounds[goal.figure], strict=True)
    value = statistics.median(mine / other for mine, other in rounds)
    return {
        "goal": goal.name,
        "ours": ours.contender,
        "theirs": theirs.contender,
        "ratio": value,
        "at_least": goal.at_least,
        "reached": None if goal.at_least is None else value >= goal.at_least,
    }


def _best(names: Sequence[str], figure: str, results: Sequence[Result]) -> Result | None:
    chosen = [result for result in results if result.contender in names and result.rounds.get(figure)]
    return max(chosen, key=lambda result: statistics.median(result.rounds[figure]), default=None)


def start_goals(results: Sequence[Result], imports: Sequence[float]) -> list[dict[str, Any]]:
    """How much longer than importing torch our starts take."""
    found = []
    for result in results:
        if result.contender in PLAIN and result.rounds.get("start"):
            seconds = statistics.median(a - b for a, b in zip(result.rounds["start"], imports, strict=True))
            found.append(
                {
                    "goal": f"start of {result.contender} after that of `{IMPORT_TORCH}`",
                    "seconds": seconds,
                    "at_most": START_GOAL_SECONDS,
                    "reached": seconds <= START_GOAL_SECONDS,
                }
            )
    return found


def agreement(result: Result, reference: Result, workload: str) -> tuple[int, int]:
    """(tokens before the first that differs from the reference's, tokens), over all rows of a workload."""
    same = total = 0
    for row, other in zip(result.tokens[workload], reference.tokens[workload], strict=True):
        same += next((i for i, (one, two) in enumerate(zip(row, other, strict=True)) if one != two), len(row))
        total += len(row)
    return same, total


def table(results: Sequence[Result], reference: Result | None) -> str:
    """The figures, in markdown."""
    head = ["", *(heading for _, heading, _ in FIGURES), "MB, 1 text", "MB, all", "as trivium-fp32"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for result in results:
        cells = []
        for figure, _, digits in FIGURES:
            value = result.median(figure)
            cells.append("" if value is None else f"{value:,.{digits}f}")
        same, total = agreement(result, reference, "decode8") if reference else (0, 0)
        memory = [f"{size / 1e6:,.0f}" for size in (result.peak_bytes_one_text, result.peak_bytes)]
        rows.append([result.contender, *cells, *memory, f"{same} of {total}" if total else ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def goals_table(found: Sequence[dict[str, Any]]) -> str:
    """The ratios and whether they are what they ought to be, in markdown."""
    rows = [["goal", "measured", "wanted", ""], ["---", "---", "---", "---"]]
    for goal in found:
        reached = {None: "", True: "reached", False: "not reached"}[goal["reached"]]
        if "ratio" in goal:
            wanted = "" if goal["at_least"] is None else f"{goal['at_least']:.1f} x"
            measured = f"{goal['ratio']:.2f} x ({goal['ours']} / {goal['theirs']})"
        else:
            wanted, measured = f"at most {goal['at_most']:.1f} s", f"{goal['seconds']:.2f} s"
        rows.append([goal["goal"], measured, wanted, reached])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def prepare(chosen: Sequence[Contender], options: argparse.Namespace, folder: Path) -> tuple[list[Job], dict[str, str]]:
    """The jobs of what can run, and why the others cannot."""
    skipped = {}
    there = []
    for contender in chosen:
        module = MODULES.get(contender.engine)
        if module is not None and find_spec(module) is None:
            skipped[contender.name] = f"{module} is not installed"
        else:
            there.append(contender)
    formats = tuple(dict.fromkeys(contender.format for contender in there))
    order = Order(options.model, str(folder), formats, options.prefill_tokens, ROWS)
    say(f"writing {', '.join(formats)}")
    maker = Worker("writing the models", inference_files.arguments(order))
    files, failed = maker.facts["files"], maker.facts["failed"]
    maker.kill()
    skipped.update({each.name: failed[each.format] for each in there if each.format in failed})
    jobs = [
        Job(
            each.name,
            each.engine,
            files[each.format],
            str(folder / "prompts.json"),
            each.dtype,
            options.threads,
            each.settings,
        )
        for each in there
        if each.format in files
    ]
    return jobs, skipped


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contender.name for contender in contenders("bf16")]

    def chosen(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(names)}")
        return text.split(",")

    at_least: Callable[[int], Callable[[str], int]] = lambda least: lambda text: max(least, int(text))  # noqa: E731
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a decoder; default smollm2-135m-instruct")
    parser.add_argument("--contenders", type=chosen, default=names, help="comma-separated; default all")
    parser.add_argument("--packed-dtype", choices=("fp32", "bf16"), default="bf16", help="of int8 and int4; bf16")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each contender; default 5")
    parser.add_argument("--new-tokens", type=at_least(2), default=64, help="tokens written; default 64")
    parser.add_argument("--prefill-tokens", type=at_least(1), default=512, help="length of the long prompt; 512")
    parser.add_argument("--threads", type=at_least(0), default=0, help="of each contender; default what it chooses")
    parser.add_argument("--quick", action="store_true", help="one short round: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and circumstances there")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.new_tokens = 1, min(options.new_tokens, 4)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options = parse(argv)
    plan = Plan(options.rounds, options.new_tokens, options.prefill_tokens, options.threads)
    chosen = [each for each in contenders(options.packed_dtype) if each.name in options.contenders]
    with tempfile.TemporaryDirectory() as folder:
        jobs, skipped = prepare(chosen, options, Path(folder))
        for name, why in skipped.items():
            say(f"  without {name}: {why}")
        results = measure(jobs, plan)
        imports = measure_starts(jobs, results, plan.rounds)
    found = [each for goal in GOALS if (each := ratio(goal, results)) is not None]
    found += start_goals(results, imports)
    reference = next((result for result in results if result.contender == "trivium-fp32"), None)
    print(f"{table(results, reference)}\n\n{goals_table(found)}")
    for name, why in skipped.items():
        print(f"\nLeft out: {name}: {why}")
    if options.json:
        report = {
            "circumstances": circumstances(PACKAGES),
            "options": vars(options) | {"json": None},
            "seed": None,  # nothing is drawn: prompts are text, and what is written is greedy
            "results": [
                asdict(result) | {"medians": {figure: result.median(figure) for figure in result.rounds}}
                for result in results
            ],
            "import_torch_seconds": imports,
            "goals": found,
            "skipped": skipped,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        say(f"written: {options.json}")


if __name__ == "__main__":
    main()
