"""A small model of each kind, pretrained for a moment, and recipes that fine-tune it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trivium.checkpoints.directory import save_model_directory
from trivium.config import build_settings
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.models.build import build_model, initialise
from trivium.models.config import Kind, ModelConfig
from trivium.tokenizer.bpe import Tokenizer

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPES: dict[Kind, dict[str, Any]] = {
    "decoder": {"layers": 2, "kv_heads": 2, "mlp": "gated"},
    "encoder": {
        "layers": 2, "positions": "learned", "norm": "layernorm", "norm_placement": "post", "mlp": "plain",
        "activation": "gelu", "bias": "all", "embedding_norm": True, "segment_types": 2,
        "head_hidden": "activation_norm", "head_hidden_bias": True, "head_bias": True,
    },
    "encoder-decoder": {
        "layers": 2, "decoder_layers": 2, "positions": "relative", "norm": "rmsnorm", "mlp": "plain",
        "activation": "relu", "attention_scale": 1.0, "tied_embeddings": False,
    },
}  # fmt: skip


def rows(count: int = 120) -> list[dict[str, str]]:
    """Sums in words: real enough to be learned, and all different."""
    found = []
    for number in range(count):
        a, b, c = number % 9, number // 9 % 9, number // 81 % 9
        asked = f"add {NUMBERS[a]} and {NUMBERS[b]}" + (f" and {NUMBERS[c]}" if number > 80 else "")
        found.append({"prompt": asked, "response": f"the sum is {a + b + 2 + ((c + 1) if number > 80 else 0)}"})
    return found


def base_model(folder: Path, kind: Kind = "decoder", dropout: float = 0.1) -> Path:
    """A directory with a small random model and a tokenizer that knows the rows' words."""
    place = folder / f"base-{kind}"
    if place.exists():
        return place
    texts = [f"{row['prompt']} {row['response']}" for row in rows()] * 3
    tokenizer = Tokenizer.train(texts=texts, vocab_size=400, kind=kind)
    config = ModelConfig(
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        width=64,
        heads=4,
        max_positions=128,
        dropout=dropout,
        decoder_start_id=(tokenizer.pad_id or 0) if kind == "encoder-decoder" else 0,
        **SHAPES[kind],
    )
    model = build_model(config)
    initialise(model, config, 0)
    save_model_directory(place, model, config, tokenizer)
    return place


def data_file(folder: Path) -> Path:
    """The rows as jsonl."""
    path = folder / "sums.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def recipe_for(folder: Path, run: str, kind: Kind = "decoder", **changes: Any) -> FinetuneRecipe:
    """A recipe; `changes` replace whole sections, but `training` and `data` are merged."""
    data = {
        "train": [str(data_file(folder))],
        "held_out_fraction": 0.2,
        "sequence_length": 64,
        "rows_per_step": 6,
        "rows_per_micro_batch": 2,
        **changes.pop("data", {}),
    }
    training = {
        "steps": 24,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "evaluate_every_steps": 12,
        "save_every_steps": 6,
        **changes.pop("training", {}),
    }
    return build_settings(
        FinetuneRecipe,
        {
            "run": str(folder / run),
            "seed": 5,
            "device": "cpu",
            "start_from": str(base_model(folder, kind)),
            "task": {"name": "instruct", "generated_rows": 4, "max_new_tokens": 8},
            "data": data,
            "peft": {"method": "lora", "rank": 4, "dropout": 0.1},
            "training": training,
            "forgetting": {"paths": ["stdlib"], "max_bytes": 4000},
            **changes,
        },
        "test",
    )
