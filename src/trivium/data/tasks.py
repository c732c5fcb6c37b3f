"""From a text to what a model reads and what it is to answer: one small class for each objective.

A task is a pure function (ids, draw) -> `Example`, and knows beforehand how much room a text of so many ids may take,
so that texts can be packed into rows before anything is drawn. Texts come without marks; examples have them.

Invariant its tests check: from an example's input and targets the text can be put together again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORED
from trivium.data.denoising import add_noise
from trivium.data.marks import MODE_SENTINELS, Marks
from trivium.data.masking import mask_tokens
from trivium.data.objectives_settings import (
    Denoiser,
    DenoiseSettings,
    MaskedSettings,
    MixtureSettings,
    Mode,
    ObjectiveSettings,
    PrefixSettings,
    SpansSettings,
)
from trivium.data.spans import Cut, cut_of, cut_spans, end_mask, noise_mask

Ids = NDArray[np.int64]

# Shorter texts are passed over: nothing could be cut out and something left.
MIN_TOKENS = 2
MODES: tuple[Mode, ...] = ("R", "S", "X")


@dataclass(frozen=True)
class Example:
    """One text made into a task."""

    ids: Ids
    """(T,): what the model reads; of an encoder-decoder, what its decoder reads."""
    targets: Ids
    """(T,): what is to be predicted at each place, or `IGNORED`."""
    source: Ids | None = None
    """(S,): what the encoder of an encoder-decoder reads."""


@dataclass(frozen=True)
class Room:
    """The most positions that the example of a text may take."""

    source: int
    """0 for models of one stack."""
    target: int

    @property
    def most(self) -> int:
        """The larger of the two."""
        return max(self.source, self.target)


class Task(Protocol):
    """One objective."""

    def room(self, tokens: int) -> Room:
        """What a text of so many ids (`MIN_TOKENS` at least) may take; never falls with `tokens`."""
        ...

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """The task made of a text."""
        ...


def build_task(objective: ObjectiveSettings, marks: Marks) -> Task:
    """The task of an objective that makes its examples of texts (every one but `causal` and `pairs`)."""
    if isinstance(objective, MaskedSettings):
        return MaskedTask(objective, marks)
    if isinstance(objective, SpansSettings):
        return MixtureTask(
            (Denoiser(mode="R", noise_share=objective.noise_share, mean_span=objective.mean_span),), marks
        )
    if isinstance(objective, MixtureSettings):
        return MixtureTask(objective.denoisers, marks, objective.mode_tokens)
    if isinstance(objective, DenoiseSettings):
        return DenoiseTask(objective, marks)
    if isinstance(objective, PrefixSettings):
        return PrefixTask(marks)
    raise ValueError(f"{objective.name} makes no task of a text")


def seq2seq_example(source: Ids, target: Ids, start_id: int) -> Example:
    """An encoder-decoder's example: its decoder reads the target one place later, after `start_id`."""
    return Example(np.concatenate([[start_id], target[:-1]]).astype(np.int64), target, source)


@dataclass(frozen=True)
class MaskedTask:
    """Hidden tokens, restored in place; marks are never hidden."""

    settings: MaskedSettings
    marks: Marks

    def room(self, tokens: int) -> Room:
        """The text and its marks."""
        return Room(0, tokens + self.marks.width)

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """The text with its marks, some of its tokens hidden."""
        marks, settings = self.marks, self.settings
        assert marks.mask_id is not None
        starts = None
        if settings.whole_words and marks.word_starts is not None:
            starts = marks.word_starts(ids.tolist())
        inputs, targets = mask_tokens(
            ids,
            draw,
            mask_id=marks.mask_id,
            ordinary_ids=marks.ordinary,
            share=settings.mask_share,
            hidden_share=settings.hidden_share,
            random_share=settings.random_share,
            maskable=marks.are_ordinary(ids),
            word_starts=starts,
        )
        around = [np.full(len(part), IGNORED, np.int64) for part in (marks.before, marks.after)]
        return Example(marks.wrapped(inputs), np.concatenate([around[0], targets, around[1]]))


@dataclass(frozen=True)
class MixtureTask:
    """Spans cut out in one of several ways, drawn for each text; with a single way this is T5's span corruption.

    Sources and targets end with the marks that end a text; what would begin one (`<s>`) is left out, as in T5.
    """

    denoisers: tuple[Denoiser, ...]
    marks: Marks
    mode_tokens: bool = False

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Those that stand for spans."""
        return self.marks.sentinels[:-MODE_SENTINELS] if self.mode_tokens else self.marks.sentinels

    def room(self, tokens: int) -> Room:
        """The most that any of the ways needs."""
        rooms = [self._room_of(denoiser, tokens) for denoiser in self.denoisers]
        return Room(max(room.source for room in rooms), max(room.target for room in rooms))

    def _room_of(self, denoiser: Denoiser, tokens: int) -> Room:
        ends = len(self.marks.after)
        if denoiser.mode == "S":
            source = tokens  # one token at least is cut out, and one sentinel is put in
            target = 1 + min(tokens - 1, max(1, round(2 * denoiser.noise_share * tokens)))
        else:
            cut = self._cut(denoiser, tokens)
            source, target = tokens - cut.tokens + cut.spans, cut.tokens + cut.spans
        return Room(source + ends + self.mode_tokens, target + ends)

    def _cut(self, denoiser: Denoiser, tokens: int) -> Cut:
        """The paper's numbers; never more spans than there are sentinels for."""
        cut = cut_of(tokens, denoiser.noise_share, denoiser.mean_span)
        return Cut(cut.tokens, min(cut.spans, len(self.sentinels)))

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """What is left as the source, what is cut out as the target."""
        weights = np.array([denoiser.weight for denoiser in self.denoisers])
        denoiser = self.denoisers[int(draw.choice(len(weights), p=weights / weights.sum()))]
        if denoiser.mode == "S":
            mask = end_mask(len(ids), denoiser.noise_share, draw)
        else:
            mask = noise_mask(len(ids), self._cut(denoiser, len(ids)), draw)
        source, target = cut_spans(ids, mask, self.sentinels)
        first = [self.marks.sentinels[MODES.index(denoiser.mode) - MODE_SENTINELS]] if self.mode_tokens else []
        source, target = (np.concatenate([part, self.marks.after]).astype(np.int64) for part in (source, target))
        return seq2seq_example(np.concatenate([first, source]).astype(np.int64), target, self.marks.start_id)


@dataclass(frozen=True)
class DenoiseTask:
    """A spoilt text as the source, the text as the target."""

    settings: DenoiseSettings
    marks: Marks

    def room(self, tokens: int) -> Room:
        """Noise never makes a text longer."""
        return Room(tokens + self.marks.width, tokens + self.marks.width)

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """The example of a text."""
        marks = self.marks
        assert marks.mask_id is not None
        ends = np.zeros(0, np.int64) if marks.sentence_ends is None else marks.sentence_ends
        spoilt = add_noise(ids, draw, self.settings, mask_id=marks.mask_id, sentence_ends=ends)
        return seq2seq_example(marks.wrapped(spoilt), marks.wrapped(ids), marks.start_id)


@dataclass(frozen=True)
class PrefixTask:
    """The beginning of a text as the source, the rest as the target; every place of the cut equally likely."""

    marks: Marks

    def room(self, tokens: int) -> Room:
        """Either side may be all but one token."""
        return Room(tokens - 1 + self.marks.width, tokens - 1 + self.marks.width)

    def example(self, ids: Ids, draw: np.random.Generator) -> Example:
        """The example of a text."""
        cut, marks = int(draw.integers(1, len(ids))), self.marks
        return seq2seq_example(marks.wrapped(ids[:cut]), marks.wrapped(ids[cut:]), marks.start_id)
