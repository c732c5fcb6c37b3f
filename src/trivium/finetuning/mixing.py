"""How often each source comes, and general text beside them, against forgetting.

A source's share of the examples (or tokens, `data.weigh_by`) is its weight, or its size ** (1 / temperature): 1 keeps
sizes as they are, large values draw all sources alike (Devlin et al., 2019, for languages; Raffel et al., 2020, section
3.5.2). `PackedSource` draws packed rows, so a share is divided by what a row of that source holds.

Replayed text is learned as the model once learned it: a decoder the next token of documents cut to a row, an
encoder-decoder spans of them (without sentinels: the text restored). Of the standard library only what the ledger
does not measure is taken. Invariant its tests check: of the rows of all steps the stated share is general text, and
none of it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trivium.data.corpus import STANDARD_LIBRARY
from trivium.data.examples import ExampleRows, TextPieces
from trivium.data.marks import marks_of, refuse_missing_marks
from trivium.data.objectives_settings import DenoiseSettings, ObjectiveSettings, SpansSettings
from trivium.data.order import key_of
from trivium.data.prepare import prepare
from trivium.data.settings import DataSettings
from trivium.data.sources import Rows
from trivium.data.tasks import Example, Room, Task, build_task
from trivium.errors import UserError
from trivium.finetuning.data_settings import FinetuneData
from trivium.finetuning.forgetting import HELD_OUT_FRACTION
from trivium.finetuning.prepared import SourceRows
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.models.config import ModelConfig
from trivium.progress import SILENT, Progress
from trivium.tokenizer.bpe import Tokenizer

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sized:
    """The rows of one source, and how much they hold."""

    name: str
    rows: Rows
    num_examples: int
    num_tokens: int
    weight: float | None = None
    """As the recipe has it."""


def mixed(sources: Sequence[Sized], data: FinetuneData, general: Sequence[Rows] = ()) -> list[SourceRows]:
    """The sources with the weights of their rows, and the rows of general text beside them."""
    weights: Sequence[float | None] = row_weights(sources, data) or [None] * len(sources)
    if not general:
        return [SourceRows(each.name, each.rows, weight) for each, weight in zip(sources, weights, strict=True)]
    assert data.replay is not None
    stated = [weight or float(len(each.rows)) for each, weight in zip(sources, weights, strict=True)]
    scale = sum(stated) * data.replay.share / (1 - data.replay.share) / sum(map(len, general))
    made = [SourceRows(each.name, each.rows, weight) for each, weight in zip(sources, stated, strict=True)]
    return made + [SourceRows(f"replay {number}", rows, scale * len(rows)) for number, rows in enumerate(general, 1)]


def row_weights(sources: Sequence[Sized], data: FinetuneData) -> list[float] | None:
    """How often a packed row of each source is drawn; None: as often as there are rows. UserError for a temperature
    beside weights."""
    stated = [source.weight for source in sources if source.weight is not None]
    if stated and data.temperature != 1:
        raise UserError("data.temperature: weights are given, which say how often each source comes; leave one out")
    if not stated and data.temperature == 1:
        return None
    sizes = [source.num_examples if data.weigh_by == "rows" else source.num_tokens for source in sources]
    shares = stated or [size ** (1 / data.temperature) for size in sizes]
    return [share * len(source.rows) / size for share, source, size in zip(shares, sources, sizes, strict=True)]


@dataclass(frozen=True)
class NextTokenTask:
    """Each token of a text from those before it; the first where something stands before every text."""

    before: tuple[int, ...]

    def room(self, tokens: int) -> Room:
        """The text but its last token, and what stands before it."""
        return Room(0, tokens + len(self.before) - 1)

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """Nothing is drawn."""
        whole = np.concatenate([self.before, ids]).astype(np.int64)
        return Example(whole[:-1], whole[1:])


def replay_rows(
    recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, length: int, progress: Progress = SILENT
) -> list[ExampleRows]:
    """General text as rows of `length` positions, those of each path; none where the recipe wants none.

    UserError where its paths hold text that the ledger measures, or the tokenizer has nothing to stand for what is
    hidden.
    """
    if recipe.data.replay is None:
        return []
    paths = recipe.data.replay.paths
    for path in paths:
        _refuse_measured(path, recipe.forgetting.paths)
    task = _task(tokenizer, config)
    made = []
    for number, path in enumerate(paths):
        fraction = HELD_OUT_FRACTION if path == STANDARD_LIBRARY else 0.0
        settings = DataSettings(train=(path,), held_out_fraction=fraction, sequence_length=length)  # type: ignore[arg-type]
        ((shards, _),) = prepare(settings, tokenizer, progress=progress).train
        seed = key_of(recipe.seed, "replay", number)
        made.append(ExampleRows(TextPieces(shards, task, length), length, seed, tokenizer.pad_id or 0))
    return made


def _refuse_measured(path: str, measured: Sequence[str]) -> None:
    """UserError where a path lies in one that the ledger measures, or the other way round."""
    if path == STANDARD_LIBRARY:
        return
    mine = Path(path).absolute()
    for other in measured:
        theirs = Path(other).absolute()
        if other != STANDARD_LIBRARY and (mine == theirs or mine in theirs.parents or theirs in mine.parents):
            raise UserError(
                f"data.replay.paths: {path} is also text by which forgetting is measured (forgetting.paths: {other}), "
                "and what is learned cannot measure it: name other text in one of them"
            )


def _task(tokenizer: Tokenizer, config: ModelConfig) -> Task:
    """How the model once learned text."""
    if config.kind == "decoder":
        starts = tokenizer.adds_bos and tokenizer.bos_id is not None
        return NextTokenTask((int(tokenizer.bos_id or 0),) if starts else ())
    objective: ObjectiveSettings = SpansSettings()
    if not tokenizer.sentinel_ids and tokenizer.mask_id is not None:
        objective = DenoiseSettings(permute_sentences=False)
    marks = marks_of(tokenizer, objective, config.decoder_start_id)
    refuse_missing_marks(objective, config.kind, marks)
    return build_task(objective, marks)
