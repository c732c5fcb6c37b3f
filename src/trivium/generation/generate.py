"""Prompts to continuations, and sources to targets: batched, cached, streamed.

Decoders continue a prompt: an `Engine` (`batching.py`) writes their texts, each of which leaves when it has ended and
makes room for the next. Encoder-decoders write the target of a source (`reading.py`). Token after token is chosen
greedily or drawn; with `num_beams` above 1 the likeliest text is searched for (`beam_search.py`).

Invariants its tests check: the tokens are those of `transformers` for equal weights; cached equals recomputed; a
prompt continues alone as it does in any batch, greedily or (by its own seed) sampled; streamed pieces join to the
whole text.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from trivium.errors import UserError
from trivium.generation.batching import Engine
from trivium.generation.beam_search import search
from trivium.generation.choosing import choose
from trivium.generation.fast_stepper import FastStepper
from trivium.generation.mode import evaluating
from trivium.generation.purposes import refuse_unless
from trivium.generation.reading import CACHE_STEP, GeneratingModel, Reading
from trivium.generation.rows import Generation, Row, Rules, build_rows, build_rules
from trivium.generation.settings import GenerationSettings
from trivium.generation.stepper import PlainStepper, Stepper
from trivium.models.decoder import Decoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

__all__ = ["Generation", "generate", "stream"]


def generate(
    model: GeneratingModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings | None = None,
    *,
    stream: Callable[[int, str], None] | None = None,
    seeds: Sequence[int] | None = None,
    eos_ids: Sequence[int] | None = None,
    progress: Progress = SILENT,
    description: str = "writing texts",
) -> list[Generation]:
    """Continue each prompt (text, or ids), or write each source's target; results are in the order of `prompts`.

    `stream(i, piece)` is called with new text of prompt i as it becomes certain (with beams: at its end). `seeds`
    replaces the seeds of the prompts, which are otherwise `sequence_seed(settings.seed, i)`. `eos_ids` replaces the
    ids that end a text, by default the tokenizer's end-of-text token. `description` is what `progress` calls the work.
    Raises UserError when a prompt leaves no room in the model's context or holds an id the model does not know, when
    the model is none that writes text, and when its scores are not numbers.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts is a sequence of prompts: for a single one, give [prompt]")
    settings = settings or GenerationSettings()
    rows, rules = _prepared(model, tokenizer, prompts, settings, seeds, eos_ids)
    # Prompts of like length are read together, so that little is padded; results do not depend on it.
    order = sorted(rows, key=lambda row: len(row.prompt))
    progress.start(description, total=len(rows), unit="text" if len(rows) == 1 else "texts")
    for row, piece in _continue(model, tokenizer, order, rules):
        if stream is not None and piece:
            stream(row.index, piece)
        if row.finish_reason is not None:
            progress.advance()
    progress.finish()
    return [row.generation() for row in rows]


def stream(
    model: GeneratingModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings | None = None,
    *,
    eos_ids: Sequence[int] | None = None,
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece; joined, it is the text `generate` returns for `[prompt]`.

    The model is in evaluation mode until the iterator ends or is closed. Errors as in `generate`, before the first
    piece.
    """
    rows, rules = _prepared(model, tokenizer, [prompt], settings or GenerationSettings(), None, eos_ids)
    return (piece for _, piece in _continue(model, tokenizer, rows, rules) if piece)


def _prepared(
    model: GeneratingModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    seeds: Sequence[int] | None,
    eos_ids: Sequence[int] | None,
) -> tuple[list[Row], Rules]:
    """Everything checked before anything is computed."""
    refuse_unless(model.config, "generation", ("decoder", "encoder-decoder"))
    if model.config.kind != "decoder" and (settings.speculate or settings.kv_cache != "model"):
        raise UserError("speculate and kv_cache are for decoders: set speculate=0 and kv_cache=model")
    rows = build_rows(model.config, tokenizer, prompts, settings, seeds)
    return rows, build_rules(model.config, tokenizer, settings, eos_ids)


def _continue(model: GeneratingModel, tokenizer: Tokenizer, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """Continue `rows` until all have finished; yields (row, new text) after each row's every token."""
    settings = rules.settings
    with evaluating(model):
        if isinstance(model, Decoder) and settings.num_beams == 1:
            yield from _by_engine(model, rows, rules)
            return
        rows_per_batch = max(1, settings.rows_per_batch // settings.num_beams)
        for start in range(0, len(rows), rows_per_batch):
            some, started = rows[start : start + rows_per_batch], time.perf_counter()
            searched = settings.num_beams > 1
            written = search(model, tokenizer, some, rules) if searched else _together(model, some, rules)
            for row, piece in written:
                row.seconds = time.perf_counter() - started
                yield row, piece


def stepper_for(model: Decoder) -> Stepper:
    """What reads fastest in texts of `model`: the kernels, where they know it and nothing else is asked of torch."""
    if torch.is_autocast_enabled(model.device.type):
        return PlainStepper(model)
    return FastStepper.of(model) or PlainStepper(model)


def _by_engine(model: Decoder, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """The texts of a decoder; raises what kept any of them from going on."""
    if not rows:
        return
    longest = max(len(row.prompt) + min(row.limit, CACHE_STEP) for row in rows)
    engine = Engine(
        model,
        slots=min(rules.settings.rows_per_batch, len(rows)),
        capacity=longest,
        kv=rules.settings.kv_cache,
        stepper=stepper_for(model),
    )
    for row in rows:
        engine.submit(row, rules)
    while engine.busy:
        for row, piece in engine.step():
            if row.error is not None:
                raise row.error
            yield row, piece


def _together(model: GeneratingModel, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """The targets of an encoder-decoder, token after token; those that have ended leave the batch."""
    reading = Reading(model, [row.prompt for row in rows], max(row.limit for row in rows))
    while True:
        chosen = choose(reading.logits_BV, rows, rules)
        for row, (token, logprob) in zip(rows, chosen, strict=True):
            yield row, row.push(token, logprob, rules.ends)
        going_on = [place for place, row in enumerate(rows) if row.finish_reason is None]
        if not going_on:
            return
        if len(going_on) < len(rows):
            rows = [rows[place] for place in going_on]
            reading.reorder(going_on)
        reading.advance([row.tokens[-1] for row in rows])
