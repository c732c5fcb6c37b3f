"""What the stages of a quickstart know of each other, and what holds for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trivium.data.corpus import STANDARD_LIBRARY
from trivium.data.settings import DataSettings
from trivium.models.config import Kind, ModelConfig
from trivium.planner.memory import MemoryPlan
from trivium.pretraining.recipe import PretrainRecipe
from trivium.progress import Progress

SEED = 0
VOCABULARY = 4096
# ModernBERT's norms stand before its layers, as in every recent family, and it learns sooner: in 160 steps of 8,192
# tokens one of 1.1 M parameters, at a rate of 3e-3, came to fill 8.6 % of held-out masks; a BERT of 1.2 M, at 1e-3,
# came to 4.9 %.
FAMILY: dict[Kind, str] = {"decoder": "llama", "encoder": "modernbert", "encoder-decoder": "t5"}
# Share of the tokens that are hidden: more than a BERT's 15 %, since more is learned of each text (as in ModernBERT).
MASK_SHARE = 0.3
# Share of the documents that no stage trains on: larger where a later stage is measured on their functions.
HELD_OUT: dict[Kind, float] = {"decoder": 0.04, "encoder": 0.1, "encoder-decoder": 0.1}
# Share of the time left that pretraining gets; the rest is the later stage's.
PRETRAINING_SHARE: dict[Kind, float] = {"decoder": 0.75, "encoder": 0.75, "encoder-decoder": 0.55}
# A command that uses the model of each kind.
TRIED: dict[Kind, str] = {
    "decoder": "trivium generate {} --prompt 'def main():' --max-new-tokens 80",
    "encoder": "trivium fill-mask {} 'for i in [MASK](10):'",
    "encoder-decoder": "trivium seq2seq {} 'import os, <extra_id_0>, re'",
}


@dataclass
class Quickstart:
    """What is known so far; stages fill it in."""

    out: Path
    minutes: float
    kind: Kind
    progress: Progress
    began: float
    tokens: int = 0
    model: ModelConfig | None = None
    """The shape that is pretrained; None in a quickstart that goes on with its run."""
    plan: MemoryPlan | None = None
    """What pretraining it needs."""
    recipe: PretrainRecipe | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    """Of the pretraining run."""
    results: dict[str, Any] = field(default_factory=dict)
    """What later stages found."""
    table: dict[str, str] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)
    """Commands to try."""
    ignore_plan: bool = False
    """Go on even where the memory planned is more than there is."""

    @property
    def seconds_left(self) -> float:
        """Of the time asked for."""
        return 60 * self.minutes - (time.perf_counter() - self.began)

    @property
    def data(self) -> DataSettings:
        """The text of every stage, as pretraining reads it."""
        return data_settings(self.kind)


def data_settings(kind: Kind) -> DataSettings:
    """The standard library in rows of 256 tokens."""
    return DataSettings(
        train=[STANDARD_LIBRARY],  # type: ignore[arg-type]
        held_out_fraction=HELD_OUT[kind],
        sequence_length=256,
        rows_per_step=32,
        rows_per_micro_batch=16,
        evaluation_rows=64,
    )


class Stage(NamedTuple):
    """One stage of the quickstart."""

    name: str
    work: Callable[[Quickstart], None]
