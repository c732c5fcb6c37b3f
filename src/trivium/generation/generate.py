"""Prompts to continuations, and sources to targets: batched, cached, streamed.

Decoders continue a prompt; encoder-decoders write the target of a source. A sequence that has ended leaves the batch,
and its rows of the KV cache with it. Token after token is chosen greedily or drawn; with `num_beams` above 1 the
likeliest text is searched for (`beam_search.py`).

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
from torch import Tensor

from trivium.generation.beam_search import search
from trivium.generation.filters import Past
from trivium.generation.mode import evaluating
from trivium.generation.purposes import refuse_unless
from trivium.generation.reading import GeneratingModel, Reading
from trivium.generation.rows import Generation, Row, Rules, build_rows, build_rules
from trivium.generation.sampling import draw, uniform
from trivium.generation.settings import GenerationSettings
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
    # Prompts of like length share a batch, so that little is padded; results do not depend on it.
    order = sorted(rows, key=lambda row: len(row.prompt))
    rows_per_batch = max(1, settings.rows_per_batch // settings.num_beams)
    progress.start(description, total=len(rows), unit="text" if len(rows) == 1 else "texts")
    for start in range(0, len(order), rows_per_batch):
        for row, piece in _continue(model, tokenizer, order[start : start + rows_per_batch], rules):
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
    rows = build_rows(model.config, tokenizer, prompts, settings, seeds)
    return rows, build_rules(model.config, tokenizer, settings, eos_ids)


def _continue(model: GeneratingModel, tokenizer: Tokenizer, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """Continue `rows` together until all have finished; yields (row, new text) after each row's every token."""
    started = time.perf_counter()
    with evaluating(model):
        finished = (
            search(model, tokenizer, rows, rules)
            if rules.settings.num_beams > 1
            else _token_by_token(model, rows, rules)
        )
        for row, piece in finished:
            row.seconds = time.perf_counter() - started
            yield row, piece


def _token_by_token(model: GeneratingModel, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """The likeliest token, or one that is drawn, after another."""
    batch = _Batch(model, rows, rules)
    while batch.rows:
        tokens, logprobs = batch.choose()
        for row, token, logprob in zip(batch.rows, tokens, logprobs, strict=True):
            yield row, row.push(token, logprob, rules.ends)
        batch.advance(tokens)


class _Batch:
    """The rows still running, and what the model has read of them."""

    def __init__(self, model: GeneratingModel, rows: list[Row], rules: Rules) -> None:
        """Read the prompts."""
        self.rows, self.rules = rows, rules
        self.reading = Reading(model, [row.prompt for row in rows], max(row.limit for row in rows))
        self.seen_BV = None if rules.settings.repetition_penalty == 1.0 else self._seen()

    @torch.inference_mode()
    def choose(self) -> tuple[list[int], list[float]]:
        """The next token of each row, and its log-probability under the unfiltered model."""
        logprobs_BV = self.reading.logprobs()
        # An embedding table may be longer than the vocabulary, to suit the hardware: its tail is never chosen.
        scores_BV = self.reading.logits_BV.float()[:, : self.rules.vocab_size]
        filtered_BV = self.rules.pipe(scores_BV, self._past())
        if self.rules.settings.greedy:
            tokens_B = filtered_BV.argmax(-1)
        else:
            tokens_B = draw(filtered_BV, [uniform(row.seed, len(row.tokens)) for row in self.rows])
        return tokens_B.tolist(), logprobs_BV.gather(1, tokens_B[:, None])[:, 0].tolist()

    @torch.inference_mode()
    def advance(self, tokens: list[int]) -> None:
        """Read the tokens just chosen; rows that have finished leave the batch."""
        running = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        if len(running) < len(self.rows):
            self.rows = [self.rows[i] for i in running]
            if not running:
                return
            self.reading.reorder(running)
            self.seen_BV = None if self.seen_BV is None else self.seen_BV[running]
        tokens = [tokens[i] for i in running]
        if self.seen_BV is not None:
            self.seen_BV[range(len(tokens)), tokens] = True
        self.reading.advance(tokens)

    def _past(self) -> Past:
        ids = [[*row.before, *row.tokens] for row in self.rows] if self.rules.settings.no_repeat_ngram_size else []
        seen_BV = None if self.seen_BV is None else self.seen_BV[:, : self.rules.vocab_size]
        return Past(ids, [len(row.tokens) for row in self.rows], [row.limit for row in self.rows], seen_BV)

    def _seen(self) -> Tensor:
        """(B, V) bool: the tokens each row begins with."""
        vocab_size = self.reading.model.config.vocab_size
        seen_BV = torch.zeros((len(self.rows), vocab_size), dtype=torch.bool, device=self.reading.device)
        for row, seen_V in zip(self.rows, seen_BV, strict=True):
            seen_V[row.before] = True
        return seen_BV
