"""Held-out pairs as the model itself writes them: targets generated, scored against the true ones.

Scores are those of whole corpora by `metrics/`: BLEU (0 to 100), or ROUGE (the F measures, 0 to 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivium.data.examples import PairPieces, PairTask
from trivium.data.objectives_settings import PairsSettings, Score
from trivium.data.order import draw_of
from trivium.data.pairs import PairShards
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.metrics.bleu import bleu
from trivium.metrics.rouge import rouge
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.pretraining.material import Material, spread
from trivium.progress import SILENT, Progress
from trivium.runtime import give_back_freed_memory
from trivium.training.evaluate import EvaluationInterrupted

# Pairs generated together; between two such groups a run can be ended.
PAIRS_AT_ONCE = 50


@dataclass(frozen=True)
class HeldOutPairs:
    """Some held-out pairs: sources as the model reads them, and targets as texts."""

    sources: list[list[int]]
    """With their marks."""
    targets: list[str]


def held_out_pairs(material: Material, count: int) -> HeldOutPairs | None:
    """`count` held-out pairs, spread evenly; None where nothing is held out."""
    shards, marks = material.held_out, material.marks
    if not isinstance(shards, PairShards) or marks is None:
        return None
    task = PairTask(marks.before, marks.after, marks.start_id)
    pieces = PairPieces(shards.sources, shards.targets, task, material.recipe.data.sequence_length)
    chosen = spread(count, shards.sources.num_documents)
    sources = [_source(pieces, number) for number in chosen]
    targets = [material.tokenizer.decode(shards.targets.document(number)[:-1].tolist()) for number in chosen]
    return HeldOutPairs(sources, targets)


def _source(pieces: PairPieces, number: int) -> list[int]:
    source = pieces.example(number, draw_of(0)).source
    assert source is not None
    ids: list[int] = source.tolist()
    return ids


def written(
    model: EncoderDecoder,
    material: Material,
    pairs: HeldOutPairs,
    *,
    num_beams: int = 1,
    description: str = "writing held-out targets",
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> list[str]:
    """What the model writes for each source: the likeliest token after another, or by beam search.

    `description` is what `progress` calls the work.
    Raises EvaluationInterrupted once `should_stop()` is true.
    """
    objective = material.recipe.objective
    assert isinstance(objective, PairsSettings)
    most = min(objective.max_target_tokens, material.recipe.data.sequence_length)
    settings = GenerationSettings(max_new_tokens=most, temperature=0.0, num_beams=num_beams)
    texts: list[str] = []
    progress.start(description, total=len(pairs.sources), unit="texts")
    for start in range(0, len(pairs.sources), PAIRS_AT_ONCE):
        if should_stop():
            raise EvaluationInterrupted
        some = pairs.sources[start : start + PAIRS_AT_ONCE]
        texts += [result.text for result in generate(model, material.tokenizer, some, settings)]
        progress.advance(len(some))
        give_back_freed_memory()  # texts of other lengths leave holes that training cannot use
    progress.finish()
    return texts


def scores(kind: Score, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"bleu"}, or {"rouge1", "rouge2", "rougeL"}."""
    if kind == "bleu":
        return {"bleu": float(bleu(predictions, references)["bleu"])}
    found = rouge(predictions, references)
    return {name: found[name]["fmeasure"] for name in ("rouge1", "rouge2", "rougeL")}
