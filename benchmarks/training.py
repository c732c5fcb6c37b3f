"""Training speed and memory beside `transformers`, in one run: tokens per second of whole optimizer steps.

Contenders take turns (A B C A B C ...), each in a warm process of its own, so that a machine that slows down or speeds
up does so for all of them; what counts is the ratio within a round. Every contender trains on the same random ids, in
models of the same shape and the same number of parameters:

  trivium-llama          ours in the shape of a Llama, as `trivium pretrain` runs it (loop, clipping, log)
  trivium-llama-packed   the same on rows that hold four documents each, kept apart by a mask
  llama                  LlamaForCausalLM at its best: SDPA, fused AdamW
  trivium-lora           ours in the shape of a Llama, its weights frozen, with LoRA beside all linear layers of blocks
  llama-lora             the same of LlamaForCausalLM by `peft`
  trivium-gpt2           ours in the shape of a GPT-2
  gpt2                   GPT2LMHeadModel at its best: dropout off, SDPA, fused AdamW
  gpt2-defaults          GPT2LMHeadModel as its constructors make it (dropout on, plain AdamW), always fp32

Modes: fp32 (eager), bf16 (autocast, eager), compiled (bf16 autocast and torch.compile; needs a C++ compiler).
All contenders of a mode are in memory together: up to 16 GB for the medium shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workers.process import Worker, circumstances, say
from workers.training_worker import Job, arguments, our_config

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 256, "width": 64, "layers": 2, "heads": 2, "length": 32, "rows": 2},
    "small": {"vocab_size": 8192, "width": 384, "layers": 6, "heads": 6, "length": 256, "rows": 16},
    # That of SmolLM2-135M, but for its grouped heads.
    "smol": {"vocab_size": 49152, "width": 576, "layers": 30, "heads": 9, "length": 256, "rows": 2},
    "medium": {"vocab_size": 8192, "width": 512, "layers": 8, "heads": 8, "length": 512, "rows": 8},
}
MODES = ("fp32", "bf16", "compiled")
CONTENDERS = (
    "trivium-llama",
    "trivium-llama-packed",
    "llama",
    "trivium-lora",
    "llama-lora",
    "trivium-gpt2",
    "gpt2",
    "gpt2-defaults",
)
# Ratios that are reported where both took part: (name, ours, theirs).
PAIRS = (
    ("Llama shape", "trivium-llama", "llama"),
    ("Llama shape, documents packed", "trivium-llama-packed", "llama"),
    ("LoRA, Llama shape", "trivium-lora", "llama-lora"),
    ("LoRA over everything trained", "trivium-lora", "trivium-llama"),
    ("GPT-2 shape", "trivium-gpt2", "gpt2"),
    ("Llama shape over GPT-2 defaults", "trivium-llama", "gpt2-defaults"),
    ("GPT-2 shape over GPT-2 defaults", "trivium-gpt2", "gpt2-defaults"),
)
WARM_UP_STEPS = 2
PACKAGES = ("trivium", "torch", "transformers", "peft")


@dataclass
class Result:
    """One contender in one mode."""

    contender: str
    parameters: int
    steps_per_turn: int
    tokens_per_second: list[float] = field(default_factory=list)
    """One figure per round."""
    loss: float = float("nan")
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Tokens per second in the middle round."""
        return statistics.median(self.tokens_per_second)


def measure(jobs: Sequence[Job], rounds: int, turn_seconds: float, steps: int) -> list[Result]:
    """Let the jobs take turns. `steps` > 0 fixes the steps of a turn; otherwise a turn lasts about `turn_seconds`."""
    workers: list[Worker] = []
    try:
        for job in jobs:
            say(f"  starting {job.contender}")
            workers.append(start(job))
        results = [warm_up(job, worker, turn_seconds, steps) for job, worker in zip(jobs, workers, strict=True)]
        for number in range(rounds):
            for job, worker, result in zip(jobs, workers, results, strict=True):
                answer = worker.ask(f"run {result.steps_per_turn}")
                tokens = result.steps_per_turn * job.rows * job.length
                result.tokens_per_second.append(tokens / answer["seconds"])
                result.loss = answer["loss"]
            say(f"  round {number + 1} of {rounds}")
        for worker, result in zip(workers, results, strict=True):
            result.peak_bytes = worker.close()["peak_bytes"]
        return results
    finally:
        for worker in workers:
            worker.kill()


def start(job: Job) -> Worker:
    """The contender's process; it answers `run N` with {"seconds", "loss"} and `quit` with {"peak_bytes"}."""
    return Worker(f"{job.contender} ({job.mode})", arguments(job), job.threads)


def warm_up(job: Job, worker: Worker, turn_seconds: float, steps: int) -> Result:
    """Compile and fill caches, and find out how many steps make a turn."""
    worker.ask(f"run {WARM_UP_STEPS}")
    if not steps:
        steps = max(1, round(turn_seconds / worker.ask("run 1")["seconds"]))
    return Result(job.contender, worker.facts["parameters"], steps)


def ratios(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Ours over theirs: the median of the rounds' ratios of speed, and the ratio of peak memory."""
    by_name = {result.contender: result for result in results}
    found = {}
    for name, ours, theirs in PAIRS:
        if ours in by_name and theirs in by_name:
            rounds = zip(by_name[ours].tokens_per_second, by_name[theirs].tokens_per_second, strict=True)
            speed = statistics.median(mine / other for mine, other in rounds)
            found[name] = {"speed": speed, "memory": by_name[ours].peak_bytes / by_name[theirs].peak_bytes}
    return found


def gflops_per_token(job: Job) -> float:
    """Forward and backward, in the shape of the job's family; the usual count (products only)."""
    from trivium.models.counts import training_flops_per_token

    family = "gpt2" if "gpt2" in job.contender else "llama"
    return training_flops_per_token(our_config(job, family), job.length) / 1e9


def table(jobs: Sequence[Job], results: Sequence[Result]) -> str:
    """The results for people."""
    head = ("contender", "parameters", "tokens/s", "min", "max", "GFLOP/s", "peak MB", "loss")
    rows = [head]
    for job, result in zip(jobs, results, strict=True):
        figures = result.tokens_per_second
        rows.append(
            (
                result.contender,
                f"{result.parameters:,}",
                f"{result.median:,.0f}",
                f"{min(figures):,.0f}",
                f"{max(figures):,.0f}",
                f"{result.median * gflops_per_token(job):,.0f}",
                f"{result.peak_bytes / 1e6:,.0f}",
                f"{result.loss:.3f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(choices: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = [name for name in chosen if name not in choices]
            if unknown:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
            return chosen

        return split

    parser.add_argument(
        "--shapes",
        type=names(list(SHAPES)),
        default=["small"],
        help="comma-separated: tiny (only to try the script), small (14 M parameters, 16 rows of 256), "
        "medium (30 M, 8 rows of 512); default small",
    )
    parser.add_argument(
        "--modes", type=names(MODES), default=["fp32", "bf16"], help=f"of {','.join(MODES)}; default fp32,bf16"
    )
    parser.add_argument(
        "--contenders", type=names(CONTENDERS), default=list(CONTENDERS), help="comma-separated; default all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; default 5")
    parser.add_argument("--turn-seconds", type=float, default=5.0, help="length of a turn, about; default 5")
    parser.add_argument("--steps", type=int, default=0, help="steps of a turn, instead of --turn-seconds")
    parser.add_argument("--threads", type=int, default=0, help="compute threads of each contender; default torch's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and circumstances there")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.steps < 0 or options.threads < 0 or options.turn_seconds <= 0:
        parser.error("--rounds and --turn-seconds must be positive, --steps and --threads not negative")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options = parse(argv)
    report: dict[str, Any] = {
        "circumstances": circumstances(PACKAGES),
        "options": vars(options) | {"json": None},
        "groups": [],
    }
    for shape in options.shapes:
        for mode in options.modes:
            say(f"{shape}, {mode}")
            jobs = [Job(name, mode, **SHAPES[shape], threads=options.threads) for name in options.contenders]
            results = measure(jobs, options.rounds, options.turn_seconds, options.steps)
            print(f"\n{shape}, {mode}: {json.dumps(SHAPES[shape])}\n{table(jobs, results)}")
            compared = ratios(results)
            for name, ratio in compared.items():
                print(f"{name}: {ratio['speed']:.2f} x the speed, {ratio['memory']:.2f} x the peak memory")
            figures = [asdict(result) | {"median_tokens_per_second": result.median} for result in results]
            report["groups"].append({"shape": shape, "mode": mode, "results": figures, "ratios": compared})
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        say(f"written: {options.json}")


if __name__ == "__main__":
    main()
