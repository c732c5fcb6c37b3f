"""Beam search over one text: which beginnings to follow, which finished texts to keep, and when to end.

K beginnings ("beams") grow side by side. At each step all of their continuations are ranked by log-probability; of the
best ones those that are finished are kept apart, by log-probability / length^penalty, and the K best unfinished ones
are followed. A finished text counts only if it is among the K best continuations of its step. The search ends with
`BeamSearch.over`, by one of three rules (`early_stopping`) which, like all else here, are those of `transformers`.

Pure bookkeeping without tensors or a model. Invariants its tests check: with as many beams as there are texts the
result is the best text of an exhaustive search; the chosen tokens are those of `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Hypothesis:
    """A text, or the beginning of one."""

    tokens: list[int]
    """Its new ids."""
    logprobs: list[float]
    """Their log-probabilities under the model itself (nats)."""
    score: float
    """The sum of their log-probabilities after filters."""


class Candidate(NamedTuple):
    """One continuation of one beam."""

    beam: int
    """Which of the running hypotheses it continues."""
    token: int
    logprob: float
    """Of the token, under the model itself."""
    score: float
    """Of the whole: that of the beam plus the token's filtered log-probability."""


class BeamSearch:
    """The beams of one text."""

    def __init__(
        self,
        num_beams: int,
        limit: int,
        *,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> None:
        """A search for a text of at most `limit` new ids."""
        self.num_beams, self.limit = num_beams, limit
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.running = [Hypothesis([], [], 0.0)]
        """Best first: one, the empty text, at the start; `num_beams` of them later."""
        self.finished: list[tuple[float, Hypothesis]] = []
        """(log-probability / length^penalty, text), best first; at most `num_beams`."""
        self.length = 0
        """How many ids the running ones have."""

    def extended(self, candidate: Candidate) -> Hypothesis:
        """What a candidate makes of its beam."""
        beam = self.running[candidate.beam]
        return Hypothesis([*beam.tokens, candidate.token], [*beam.logprobs, candidate.logprob], candidate.score)

    def advance(self, candidates: Sequence[Candidate], ended: Sequence[bool]) -> list[int]:
        """Take one step; returns for each running hypothesis which one (before the step) it continues.

        `candidates` come best first; `ended` says of each whether it finishes a text. Candidates of score -inf count
        as none.
        """
        self.length += 1
        at_limit = self.length >= self.limit
        possible = [(c, end or at_limit) for c, end in zip(candidates, ended, strict=True) if c.score > -math.inf]
        new = [self.extended(c) for c, end in possible[: self.num_beams] if end]
        scored = [(text.score / math.pow(self.length, self.length_penalty), text) for text in new]
        self.finished = sorted((*self.finished, *scored), key=lambda item: -item[0])[: self.num_beams]
        followed = [c for c, end in possible if not end][: self.num_beams]
        parents, self.running = [c.beam for c in followed], [self.extended(c) for c in followed]
        # Too few to follow: the rest stand for nothing, and no continuation of theirs is ever possible.
        missing = self.num_beams - len(followed) if followed else 0
        self.running += [Hypothesis(h.tokens, h.logprobs, -math.inf) for h in self.running[:1] * missing]
        return parents + parents[:1] * missing

    @property
    def over(self) -> bool:
        """Whether no step more is to be taken."""
        if not self.running:
            return True
        if len(self.finished) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        best_is_longest = self.early_stopping == "never" and self.length_penalty > 0
        length = self.limit if best_is_longest else self.length
        best_possible = self.running[0].score / math.pow(length, self.length_penalty)
        return best_possible <= self.finished[-1][0]

    @property
    def best(self) -> Hypothesis:
        """The best finished text."""
        return self.finished[0][1]
