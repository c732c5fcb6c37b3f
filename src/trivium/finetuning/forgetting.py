"""What a model could do before, measured beside what it learns: the ledger.

Learning a narrow task makes a model worse at general text (French, 1999). How much is told by general text that no run
trains on, in the measure of the model's kind:
- a decoder: bits per byte, by rolling windows (`generation/scoring.py`);
- an encoder: nats per hidden token, always the same hidden, under the head for tokens it came with, put back for the
  measure on what its stack has become;
- an encoder-decoder: nats per token of spans cut out of the text (for BART, of the text restored).
A model that came without a head for tokens cannot be measured, and the ledger says so.

Excerpts of equal length are taken from documents spread evenly over the corpus, so that a few kilobytes see all of it.
Invariants its tests check: a model that is not changed loses exactly nothing; a control that trains on noise does lose.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from trivium.data.corpus import STANDARD_LIBRARY, standard_library_rows
from trivium.data.examples import collate_examples
from trivium.data.marks import Marks, marks_of
from trivium.data.objectives_settings import DenoiseSettings, MaskedSettings, ObjectiveSettings, SpansSettings
from trivium.data.order import draw_of, key_of
from trivium.data.readers import read_rows
from trivium.data.rows import text_of
from trivium.data.split import is_held_out
from trivium.data.tasks import MIN_TOKENS, Example, build_task
from trivium.errors import UserError
from trivium.finetuning.recipe import ForgettingSettings
from trivium.generation.scoring import score_documents, sum_scores
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.progress import SILENT, Progress
from trivium.runtime import Runtime
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import EvaluationInterrupted, evaluate_loss
from trivium.training.token_objective import TokenObjective

# Share of the standard library's files that the ledger measures; replay takes none of them.
HELD_OUT_FRACTION = 0.1
EXCERPT_CHARACTERS = 2048
ROWS_AT_ONCE = 8
# (share of what the measure was that was lost, share of general text in a step that it suggests).
REPLAY_FOR = ((0.01, 0.0), (0.05, 0.1), (0.15, 0.25), (math.inf, 0.5))

BITS_PER_BYTE, NATS_PER_TOKEN = "general_bits_per_byte", "general_loss"


@dataclass(frozen=True)
class Head:
    """The head for tokens that a model came with, kept where a task puts another in its place."""

    module: nn.Module
    config: ModelConfig


def general_texts(settings: ForgettingSettings) -> list[str]:
    """Excerpts of general text, up to `max_bytes` in all. UserError where `paths` hold no text."""
    documents: list[str] = []
    for path in settings.paths:
        if path == STANDARD_LIBRARY:
            rows = (str(row.values["text"]) for row in standard_library_rows())
            documents += [text for text in rows if is_held_out(text, HELD_OUT_FRACTION)]
        else:
            documents += [text_of(row) for row in read_rows(path)]
    documents = [text for text in documents if text.strip()]
    if settings.paths and not documents:
        raise UserError(f"forgetting.paths: {', '.join(settings.paths)} hold no text; name others, or [] for none")
    count = min(len(documents), max(1, settings.max_bytes // EXCERPT_CHARACTERS))
    chosen = [documents[number * len(documents) // count] for number in range(count)] if documents else []
    excerpts, left = [], settings.max_bytes
    for text in chosen:
        excerpt = text[:EXCERPT_CHARACTERS].encode("utf-8")[:left].decode("utf-8", "ignore")
        left -= len(excerpt.encode("utf-8"))
        if excerpt:
            excerpts.append(excerpt)
    return excerpts


class Ledger:
    """Measures what is left of what the model could do."""

    def __init__(
        self, texts: Sequence[str], tokenizer: Tokenizer, config: ModelConfig, runtime: Runtime, head: Head | None
    ) -> None:
        """`config`: of the model as it came; `head`: its own, where a task has put another in its place."""
        self.texts, self.tokenizer, self.config, self.runtime, self.head = texts, tokenizer, config, runtime, head
        self._batches: list[Any] | None = None

    @property
    def why_not(self) -> str:
        """Why nothing can be measured; empty where it can."""
        if not self.texts:
            return "no general text is named (forgetting.paths is empty)"
        if self.config.head != "lm":
            return "the model came without a head for tokens, so nothing general can be asked of it"
        if self.config.kind != "decoder" and self._objective() is None:
            return "the tokenizer has neither a mask nor sentinels, so nothing can be hidden"
        return ""

    @property
    def measure_name(self) -> str:
        """The key its values have in metrics."""
        return BITS_PER_BYTE if self.config.kind == "decoder" else NATS_PER_TOKEN

    def measure(
        self, model: Model, should_stop: Callable[[], bool] = lambda: False, progress: Progress = SILENT
    ) -> float:
        """Bits per byte, or nats per token. Raises EvaluationInterrupted once `should_stop()` is true."""
        if should_stop():
            raise EvaluationInterrupted
        model = self._with_its_head(model)
        if isinstance(model, Decoder):
            scores = score_documents(
                model, self.tokenizer, self.texts, progress=progress, description="measuring general text"
            )
            found = sum_scores(scores)
            return found.nll_sum / max(1, found.num_bytes) / math.log(2)
        batches = self._batches = self._batches or self._hidden_batches()
        return evaluate_loss(model, TokenObjective(), batches, self.runtime, should_stop=should_stop).loss

    def _with_its_head(self, model: Model) -> Model:
        """The same modules under the head the model came with."""
        if self.head is None:
            return model
        twin = copy.copy(model)
        twin._modules = {**model._modules, "head": self.head.module.to(model.device)}
        twin.config = self.head.config
        return twin

    def _marks(self, objective: ObjectiveSettings) -> Marks:
        return marks_of(self.tokenizer, objective, self.config.decoder_start_id)

    def _objective(self) -> ObjectiveSettings | None:
        """What is hidden and asked for; None where the tokenizer has no way to hide anything."""
        if self.config.kind == "encoder":
            return MaskedSettings() if self.tokenizer.mask_id is not None else None
        if self.tokenizer.sentinel_ids:
            return SpansSettings()
        return DenoiseSettings(permute_sentences=False) if self.tokenizer.mask_id is not None else None

    def _hidden_batches(self) -> list[Any]:
        """The excerpts with the same parts hidden at every measure."""
        objective = self._objective()
        assert objective is not None
        marks = self._marks(objective)
        task = build_task(objective, marks)
        most = min(self.config.max_positions, 512) - marks.width - 2
        seed = key_of("the ledger")
        examples: list[list[Example]] = []
        for number, ids in enumerate(self.tokenizer.encode_batch(self.texts)):
            for start in range(0, len(ids), most):
                piece = ids[start : start + most]
                if len(piece) >= MIN_TOKENS:
                    examples.append([task.example(np.array(piece, np.int64), draw_of(seed, number, start))])
        return [
            collate_examples(examples[start : start + ROWS_AT_ONCE], marks.pad_id)
            for start in range(0, len(examples), ROWS_AT_ONCE)
        ]


def suggested_replay_share(before: float, after: float) -> float:
    """The share of general text in a step that a loss of this size calls for; a rule of thumb, not a law."""
    lost = (after - before) / before if before > 0 else 0.0
    return next(share for limit, share in REPLAY_FOR if lost <= limit)


def statement(points: Sequence[dict[str, Any]], name: str, replay: float) -> dict[str, Any]:
    """The ledger of a finished run: what was gained and lost from its first to its last point, and what would help.

    A point is {"step", "held_out_loss", "general"}; losses are positive numbers where the model got worse.
    """
    first, last = points[0], points[-1]
    share = suggested_replay_share(first["general"], last["general"])
    return {
        "measure": name,
        "points": list(points),
        "before": first["general"],
        "after": last["general"],
        "lost": last["general"] - first["general"],
        "gained": first["held_out_loss"] - last["held_out_loss"] if "held_out_loss" in first else None,
        "suggested_replay_share": max(share, replay) if share else share,
    }
