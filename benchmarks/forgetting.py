"""What a model forgets when it learns a narrow task, and what keeps it: full fine-tuning, LoRA, replay, another task.

A small Llama learns the Python standard library, then to say in a sentence what a function does ((function, docstring)
pairs of the same library, files held out). Each way of learning that is an ordinary run of `trivium finetune` with its
ledger: bits per byte of code that no run trains on, before and after. Under ten minutes on two cores.

  full         everything trained
  lora         LoRA beside every linear layer of the blocks
  replay       everything trained, a quarter of the rows general text
  tasks        everything trained, and a second task: go on with a function
  lora+replay  both
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from workers.process import circumstances, say

from trivium.config import build_settings
from trivium.data.functions import split_functions
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.run import finetune
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain
from trivium.report.comparing import compare, comparison_table, write_comparison
from trivium.report.plots import Trail, trail_plot

HELD_OUT = 0.1
REPLAY = {"paths": ["stdlib"], "share": 0.25}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"peft": {"method": "lora", "rank": 8}, "rate": 2e-3},
    "replay": {"replay": REPLAY},
    "tasks": {"tasks": True},
    "lora+replay": {"peft": {"method": "lora", "rank": 8}, "rate": 2e-3, "replay": REPLAY},
}
COLORS = ("#c0392b", "#2471a3", "#1e8449", "#9a7d0a", "#5b2c6f")


def write_rows(folder: Path) -> dict[str, str]:
    """The files of both tasks."""
    train, held_out = split_functions(HELD_OUT)
    files = {}
    for name, functions in (("sentences", train), ("held_out", held_out)):
        rows = [{"prompt": f"{f.code}\n# What it does:", "response": f" {f.summary}"} for f in functions]
        files[name] = _written(folder / f"{name}.jsonl", rows)
    halves = [(f.code[: len(f.code) // 2], f.code[len(f.code) // 2 :]) for f in train]
    files["completions"] = _written(folder / "completions.jsonl", [{"prompt": a, "response": b} for a, b in halves])
    return files


def _written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def base(folder: Path, steps: int) -> str:
    """The model that all begin with."""
    recipe = {
        "run": str(folder / "base"),
        "tokenizer": {"vocab_size": 4096},
        "data": {
            "train": ["stdlib"],
            "held_out_fraction": HELD_OUT,
            "sequence_length": 256,
            "rows_per_step": 16,
            "rows_per_micro_batch": 16,
        },
        "model": {"width": 256, "layers": 4, "heads": 4},
        "training": {"steps": steps, "learning_rate": 3e-3, "save_every_steps": steps},
    }
    return str(pretrain(build_settings(PretrainRecipe, recipe, "base"))["model"])


def recipe_of(way: str, folder: Path, model: str, files: dict[str, str], steps: int) -> FinetuneRecipe:
    """One way of learning the task."""
    how = WAYS[way]
    sources = [{"path": files["sentences"], "weight": 1}]
    if how.get("tasks"):
        sources.append({"path": files["completions"], "weight": 1})
    return build_settings(
        FinetuneRecipe,
        {
            "run": str(folder / way),
            "start_from": model,
            "task": {"name": "instruct", "generated_rows": 0},
            "data": {
                "train": sources,
                "validation": [files["held_out"]],
                "replay": how.get("replay"),
                "sequence_length": 256,
                "rows_per_step": 16,
                "rows_per_micro_batch": 16,
                "evaluation_rows": 32,
            },
            "peft": how.get("peft", "none"),
            "training": {
                "steps": steps,
                "learning_rate": how.get("rate", 1e-3),
                "weight_decay": 0.01,
                "evaluate_every_steps": max(1, steps // 6),
                "save_every_steps": steps,
            },
            "forgetting": {"paths": ["stdlib"], "max_bytes": 48_000},
        },
        way,
    )


def plot(found: dict[str, Any], target: Path) -> None:
    """The ledgers of all runs as a picture by itself."""
    trails = []
    for run in found["runs"]:
        summary = json.loads((Path(run["run"]) / "summary.json").read_text(encoding="utf-8"))
        points = [(point["held_out_loss"], point["general"]) for point in summary["ledger"]["points"]]
        trails.append(Trail(Path(run["run"]).name, tuple(points), f"#0a0a{len(trails):02d}"))
    svg = trail_plot(trails, name="forgetting", across="held-out loss of the task, nats", up="bits per byte", wide=True)
    for number, color in enumerate(COLORS):
        svg = svg.replace(f"#0a0a{number:02d}", color)
    for variable, color in (("ink", "#222222"), ("muted", "#666666"), ("rule", "#cccccc"), ("first", "#000000")):
        svg = svg.replace(f"var(--{variable})", color)
    target.write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"), help="where the runs go")
    parser.add_argument("--base-steps", type=int, default=250, help="steps of the model that all begin with")
    parser.add_argument("--steps", type=int, default=60, help="steps of each way")
    parser.add_argument("--ways", default=",".join(WAYS), help="only these")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--svg", type=Path, help="write the plot there, too")
    options = parser.parse_args()
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    files = write_rows(options.out)
    say("the model that all begin with")
    model = base(options.out, options.base_steps)
    for way in options.ways.split(","):
        say(f"{way} ({time.perf_counter() - began:.0f} s)")
        finetune(recipe_of(way, options.out, model, files, options.steps))
    runs = [options.out / way for way in options.ways.split(",")]
    found = compare(runs)
    write_comparison(runs, options.out / "comparison.html")
    sys.stdout.write(comparison_table(found) + f"\n{time.perf_counter() - began:.0f} s in all\n")
    if options.json:
        told = {"circumstances": circumstances(["torch"]), "seed": 0, **found}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.svg:
        plot(found, options.svg)


if __name__ == "__main__":
    main()
