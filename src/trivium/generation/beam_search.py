"""Beam search with a model: R texts of K beams each are one batch of R x K rows.

The prompts are read once, with one row each; the first step makes K rows of each of them. Beams change places in the
KV cache at every step; the memory of a source is the same for all beams of a text and stays. A text whose search is
over leaves the batch. The bookkeeping of each text is `beam.BeamSearch`.

Shapes: B = R x K rows, C candidates for each text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.generation.beam import BeamSearch, Candidate
from trivium.generation.filters import Past
from trivium.generation.reading import GeneratingModel, Reading
from trivium.generation.rows import Row, Rules

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# New positions the KV cache has room for at first. Small, since all of it is copied whenever beams change places.
CACHE_STEP = 32


def search(model: GeneratingModel, tokenizer: Tokenizer, rows: list[Row], rules: Rules) -> Iterator[tuple[Row, str]]:
    """The likeliest text that is found for each row; yields (row, new text) for each token of a text that is found."""
    batch = _Batch(model, tokenizer, rows, rules)
    while batch.texts:
        for row, found in batch.step():
            best = found.best
            for number, (token, logprob) in enumerate(zip(best.tokens, best.logprobs, strict=True), 1):
                yield row, row.push(token, logprob, rules.ends, is_last=number == len(best.tokens))


class _Batch:
    """The texts still searched for, each with its beams, and what the model has read of them."""

    def __init__(self, model: GeneratingModel, tokenizer: Tokenizer, rows: list[Row], rules: Rules) -> None:
        """Read the prompts."""
        settings = rules.settings
        self.tokenizer, self.rules = tokenizer, rules
        self.texts = [
            (
                row,
                BeamSearch(
                    settings.num_beams,
                    row.limit,
                    length_penalty=settings.length_penalty,
                    early_stopping=settings.early_stopping,
                ),
            )
            for row in rows
        ]
        room = min(CACHE_STEP, max(row.limit for row in rows))
        self.reading = Reading(model, [row.prompt for row in rows], room)

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, BeamSearch]]:
        """One token more for every beam; returns the texts that are found now."""
        candidates = self._candidates()
        index: list[int] = []
        running: list[tuple[Row, BeamSearch]] = []
        found: list[tuple[Row, BeamSearch]] = []
        first = 0
        for (row, beams), some in zip(self.texts, candidates, strict=True):
            before = len(beams.running)
            parents = beams.advance(some, [self._ends(beams, candidate) for candidate in some])
            if beams.over:
                found.append((row, beams))
            else:
                running.append((row, beams))
                index += [first + parent for parent in parents]
            first += before
        same_sources = len(index) == first and len(running) == len(self.texts)
        self.texts = running
        if running:
            if index != list(range(first)):
                self.reading.reorder(index, same_sources=same_sources)
            self.reading.advance([beam.tokens[-1] for _, beams in running for beam in beams.running])
        return found

    def _candidates(self) -> list[list[Candidate]]:
        """The best continuations of each text, best first, enough of them for K that do not end."""
        settings = self.rules.settings
        logprobs_BV = self.reading.logprobs()[:, : self.rules.vocab_size]
        hypotheses = [beam for _, beams in self.texts for beam in beams.running]
        scores_B1 = torch.tensor([[beam.score] for beam in hypotheses], device=logprobs_BV.device)
        totals_BV = self.rules.pipe(logprobs_BV, self._past(logprobs_BV)) + scores_B1
        totals_RC = totals_BV.view(len(self.texts), -1)
        wanted = max(2, 1 + len(self.rules.ends)) * settings.num_beams
        best = totals_RC.topk(min(wanted, totals_RC.shape[1]))
        chosen_RC = logprobs_BV.reshape(len(self.texts), -1).gather(1, best.indices)
        V = logprobs_BV.shape[1]
        return [
            [Candidate(place // V, place % V, logprob, score) for place, logprob, score in zip(*columns, strict=True)]
            for columns in zip(best.indices.tolist(), chosen_RC.tolist(), best.values.tolist(), strict=True)
        ]

    def _past(self, logprobs_BV: Tensor) -> Past:
        beams = [(row, beam) for row, search in self.texts for beam in search.running]
        ids = [[*row.before, *beam.tokens] for row, beam in beams]
        seen_BV = None
        if self.rules.settings.repetition_penalty != 1.0:
            seen_BV = torch.zeros_like(logprobs_BV, dtype=torch.bool)
            for seen_V, held in zip(seen_BV, ids, strict=True):
                seen_V[[token for token in held if token < self.rules.vocab_size]] = True
        return Past(ids, [len(beam.tokens) for _, beam in beams], [row.limit for row, _ in beams], seen_BV)

    def _ends(self, beams: BeamSearch, candidate: Candidate) -> bool:
        """Whether a candidate finishes its text: by its token, or by a stop string that it completes."""
        if candidate.token in self.rules.ends:
            return True
        if not self.rules.settings.stop:
            return False
        text = self.tokenizer.decode(beams.extended(candidate).tokens, skip_special=True)
        return any(stop in text for stop in self.rules.settings.stop)
