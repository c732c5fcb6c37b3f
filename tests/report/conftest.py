"""A run directory as a real run leaves it, with curves that look like real ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
# Which model is trained.
model:
  kind: decoder
  vocab_size: 8192
  width: 384
  layers: 6
training:
  # Optimizer steps.
  steps: 1200
  learning_rate: 0.001
"""


def training_line(step: int, draw: random.Random) -> dict[str, Any]:
    rate = 1e-3 * min(1.0, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / 1200))
    loss = 2.45 + 6.6 * math.exp(-step / 60) + 1.1 * math.exp(-step / 500) + draw.gauss(0, 0.06)
    speed = 5150 + draw.gauss(0, 90) - (2500 if step == 1 else 0)
    return {
        "step": step,
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": 0.4 + 3 * math.exp(-step / 40) + abs(draw.gauss(0, 0.08)) + (6.0 if step == 700 else 0),
        "tokens": step * 4096,
        "tokens_per_second": speed,
        "mfu": speed / 11500,
        "memory_bytes": 1_260_000_000 + 200_000 * min(step, 100),
        "seconds": step * 0.8,
    }


def summary() -> dict[str, Any]:
    mib = 1 << 20
    plan = {
        "weights_bytes": 53 * mib,
        "gradients_bytes": 53 * mib,
        "optimizer_bytes": 106 * mib,
        "activations_bytes": 602 * mib,
        "logits_bytes": 96 * mib,
        "framework_bytes": 290 * mib,
        "peak_bytes": 1200 * mib,
    }
    return {
        "run": "runs/standard-library",
        "status": "finished",
        "steps": 1200,
        "final_loss": 2.451,
        "tokens_per_second": 5148.2,
        "peak_bytes": 1_280_000_000,
        "planned_peak_bytes": 1200 * mib,
        "plan": plan,
        "model_facts": {
            "kind": "decoder",
            "parameters": 13_893_504,
            "layers": 6,
            "width": 384,
            "heads": 6,
            "context": 256,
            "tied_embeddings": True,
        },
        "data_facts": {
            "sources": ["Python 3.11 standard library"],
            "documents": 1532,
            "tokens": 8_123_456,
            "bytes": 27_654_321,
            "held_out_tokens": 81_002,
            "held_out_bytes": 275_911,
        },
        "tokenizer_facts": {"vocab_size": 8192, "bytes_per_token": 3.404, "unused_entries": 3},
        "held_out": {
            "perplexity": 12.91,
            "bits_per_byte": 1.084,
            "nll": 2.558,
            "num_tokens": 81_002,
            "num_bytes": 275_911,
        },
        "baselines": {"unigram_bits_per_byte": 2.741, "xz_bits_per_byte": 1.836},
        "samples": [
            {
                "prompt": "def read_lines(path):\n",
                "text": '    """Return the lines of a file, without their ends."""\n'
                "    with open(path) as file:\n        return [line.rstrip() for line in file]\n",
                "settings": {"temperature": 0.8, "top_p": 0.95, "seed": 0},
            },
            {
                "prompt": "class Queue:",
                "text": '\n    """A queue of items.\n\n    The maxsize argument sets the limit.\n    """\n',
                "settings": {"temperature": 0.8, "top_p": 0.95, "seed": 1},
            },
        ],
        "seconds": 961.4,
        "machine": {
            "system": "Linux 6.1 x86_64",
            "processor": "a processor",
            "flags": ["avx2", "avx512_bf16"],
            "usable_cores": 2,
            "memory_bytes": 25_769_803_776,
            "gpus": [],
            "versions": {"trivium": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        },
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory: `make_run(steps=..., with_summary=..., changes={...})`."""

    def make(
        *,
        steps: int = 1200,
        with_summary: bool = True,
        changes: dict[str, Any] | None = None,
        recipe: str = RECIPE,
        name: str = "standard-library",
    ) -> Path:
        draw = random.Random(0)
        run = tmp_path / name
        run.mkdir()
        (run / "recipe.yaml").write_text(recipe)
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                line = training_line(step, draw)
                file.write(json.dumps(line) + "\n")
                if step % 100 == 0:
                    held_out = line["loss"] + 0.09
                    evaluation = {
                        "step": step,
                        "held_out_loss": held_out,
                        "held_out_bits_per_byte": held_out / math.log(2) / 3.404,
                    }
                    file.write(json.dumps(evaluation) + "\n")
                    file.write(json.dumps({"step": step, "event": "checkpoint saved"}) + "\n")
        if with_summary:
            (run / "summary.json").write_text(json.dumps(summary() | (changes or {})))
            (run / "model").mkdir()
        return run

    return make
