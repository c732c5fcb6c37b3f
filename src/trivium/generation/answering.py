"""Answers to questions as spans of a text, found by an encoder (or encoder-decoder) with a `span` head.

Question and text are read as a pair; a text that is too long is read in windows that overlap. The head scores each
position as the first and as the last of the answer; the answer is the pair (first, last) with the highest sum, not
longer than allowed, over all windows (Devlin et al., 2019, section 4.2). Position 0, the mark before the question,
scores "the text does not say": the lowest of the windows' sums there, as in SQuAD 2.0, stands against the best span.

Invariants its test checks: an answer is an exact substring of the text; the best span is that of a search over all.

Shapes: B windows, T positions, n positions of the text in a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.classify import head_scores
from trivium.generation.encoding import TOKENS_PER_BATCH, Wrapped, read_all
from trivium.generation.purposes import refuse_unless
from trivium.models.build import Model
from trivium.models.config import Kind, ModelConfig
from trivium.progress import SILENT, Progress
from trivium.tokenizer.offsets import Placed, PlaceEncoder

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

KINDS: tuple[Kind, ...] = ("encoder", "encoder-decoder")
# Spans of a question that are compared; their probabilities add up to 1.
CANDIDATES = 20
_NEVER = -math.inf


@dataclass(frozen=True)
class Answer:
    """One span of a text."""

    text: str
    """Its very characters; empty: the text does not say."""
    start: int
    stop: int
    """Its place in the text, in characters, `stop` not included; 0 and 0 where it does not say."""
    score: float
    """The sum of the scores of its first and its last position."""
    probability: float
    """Among the best spans that were compared (`CANDIDATES`)."""


@dataclass(frozen=True)
class Window:
    """A question with a stretch of its text, as the model reads it."""

    wrapped: Wrapped
    begin: int
    """The position of the stretch's first token."""
    first: int
    """Which token of the whole text that is."""
    count: int
    """How many tokens of it follow."""


class Windows:
    """Cuts texts into windows for a model."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, length: int = 0, stride: int = 128) -> None:
        """Windows of at most `length` positions (0: what the model can read), each begun at most `stride` tokens
        after the one before, and sharing half its text with it at least. UserError where that leaves no room."""
        self._tokenizer, self._places = tokenizer, PlaceEncoder(tokenizer)
        self.length = min(length or config.max_positions, config.max_positions)
        self.stride, self.num_cut_questions = stride, 0
        self._last = "", Placed([], [])
        self._room = self.length - len(tokenizer.wrap([], [])[0])
        if self._room < 2:
            raise UserError(f"a row of {self.length} tokens has no room for a question and a text: give it more")

    def cut(self, question: str, context: str) -> tuple[Placed, list[Window]]:
        """The whole text's tokens with their places, and its windows (one at least). A question that takes more than
        half the room is cut."""
        asked = self._tokenizer.encode(question)
        if context != self._last[0]:  # questions about one text often follow each other
            self._last = context, self._places.encode(context)
        placed = self._last[1]
        if len(asked) > self._room // 2:
            self.num_cut_questions += 1
            asked = asked[: self._room // 2]
        return placed, list(self._windows(asked, placed.ids))

    def _windows(self, asked: list[int], ids: list[int]) -> Iterator[Window]:
        room = self._room - len(asked)
        begin = self._tokenizer.wrap(asked, [-1])[0].index(-1)
        for first in range(0, max(1, len(ids)), min(self.stride, max(1, room // 2))):
            some = ids[first : first + room]
            yield Window(Wrapped(*self._tokenizer.wrap(asked, some)), begin, first, len(some))
            if first + room >= len(ids):
                return


def answer(
    model: Model,
    tokenizer: Tokenizer,
    question: str,
    context: str,
    *,
    top: int = 1,
    stride: int = 128,
    max_answer_tokens: int = 30,
    may_be_none: bool = False,
) -> list[Answer]:
    """The `top` best answers to one question, the best first; see `answers`."""
    (found,) = answers(
        model,
        tokenizer,
        [(question, context)],
        stride=stride,
        max_answer_tokens=max_answer_tokens,
        may_be_none=may_be_none,
    )
    return found[:top]


def answers(
    model: Model,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    length: int = 0,
    stride: int = 128,
    max_answer_tokens: int = 30,
    may_be_none: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress = SILENT,
) -> list[list[Answer]]:
    """For each (question, text) its best answers, at most `CANDIDATES`, the best first; none for an empty text.

    `length` and `stride` cut long texts into windows (see `Windows`). With `may_be_none`, for models that learned from
    questions without an answer, one of them is that the text does not say. UserError for a model without a span head.
    """
    refuse_unless(model.config, "answering from a text", KINDS, ["span"])
    windows = Windows(tokenizer, model.config, length, stride)
    cut = [windows.cut(question, context) for question, context in pairs]
    read = iter(
        read_all(
            model,
            [window.wrapped for _, some in cut for window in some],
            lambda inputs: head_scores(model, inputs),
            tokens_per_batch=tokens_per_batch,
            progress=progress,
            description="looking for answers",
        )
    )
    found = []
    for (_, context), (placed, some) in zip(pairs, cut, strict=True):
        scores = [next(read) for _ in some]
        found.append(best_answers(context, placed, some, scores, max_answer_tokens, may_be_none))
    return found


def best_answers(
    context: str,
    placed: Placed,
    windows: Sequence[Window],
    scores_T2: Sequence[Tensor],
    max_answer_tokens: int,
    may_be_none: bool,
) -> list[Answer]:
    """The best answers to one question, by the scores (T, 2) of its windows. UserError for scores without end."""
    spans: dict[tuple[int, int], float] = {}
    for window, scores in zip(windows, scores_T2, strict=True):
        if not scores.isfinite().all():
            raise UserError(
                "the model's scores are not finite, so no answer can be chosen: its weights are damaged, or overflow "
                "in its precision (load it in fp32 or bf16)"
            )
        there = scores[window.begin : window.begin + window.count]
        ranges = placed.ranges[window.first : window.first + window.count]
        for span, score in _best_spans(there, ranges, max_answer_tokens):
            spans[span] = max(score, spans.get(span, _NEVER))
    if may_be_none:
        spans[0, 0] = min(float(scores[0].sum()) for scores in scores_T2)
    best = sorted(spans.items(), key=lambda item: -item[1])[:CANDIDATES]
    if not best:
        return []
    total = math.fsum(math.exp(score - best[0][1]) for _, score in best)
    return [
        Answer(context[start:stop], start, stop, score, math.exp(score - best[0][1]) / total)
        for (start, stop), score in best
    ]


def _best_spans(
    scores_n2: Tensor, ranges: Sequence[tuple[int, int]], longest: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """((start, stop) in characters, score) of the best spans of at most `longest` tokens."""
    if not ranges:
        return
    nothing = torch.tensor([start == stop for start, stop in ranges])
    firsts, lasts = scores_n2.masked_fill(nothing[:, None], _NEVER).unbind(-1)
    after = torch.full((longest - 1,), _NEVER)
    sums_nl = firsts[:, None] + torch.cat([lasts, after]).unfold(0, longest, 1)  # row: first token, column: length - 1
    best = sums_nl.flatten().topk(min(CANDIDATES, sums_nl.numel()))
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if score > _NEVER:
            first, more = divmod(place, longest)
            yield (ranges[first][0], ranges[first + more][1]), score
