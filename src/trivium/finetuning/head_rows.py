"""Rows for models with a head: one example each, with the marks of the model's inputs, padded to the longest.

Nothing is packed: a head for a text judges a row, and each row is one text (or pair). An encoder-decoder reads it as
its source, and once more, shifted, as its target. Invariant its tests check: padding and the company of other rows
change neither the loss nor the gradient.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trivium.data.batch import IGNORED, Batch
from trivium.errors import UserError
from trivium.generation.mode import evaluating
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder, shifted_right
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import EvaluationInterrupted

# A class; a number; the two ends of an answer; the class of each position, or IGNORED.
Target = int | float | tuple[int, int] | NDArray[np.int64]


@dataclass(frozen=True)
class HeadExample:
    """One text, or pair of texts, and what the head is to say of it."""

    ids: NDArray[np.int32]
    types: NDArray[np.int8] | None
    """Of each id, the text of a pair it belongs to; None where the model does not tell them apart."""
    target: Target


class HeadRows:
    """Examples as rows, at most `sequence_length` positions each."""

    def __init__(self, examples: Sequence[HeadExample], sequence_length: int, config: ModelConfig, pad_id: int) -> None:
        self.examples, self.sequence_length = examples, sequence_length
        self._two_stacks, self._start_id, self._pad_id = (
            config.kind == "encoder-decoder",
            config.decoder_start_id,
            pad_id,
        )
        self._longest = max((len(example.ids) for example in examples), default=0)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.examples)

    def row(self, number: int, epoch: int = 0) -> HeadExample:
        """One of them, the same in every epoch."""
        return self.examples[number]

    def collate(self, rows: Sequence[HeadExample]) -> Batch:
        """Rows as one batch, padded to the longest."""
        return self._batch(rows, max(len(row.ids) for row in rows))

    def worst_case(self, rows: Sequence[HeadExample]) -> Batch:
        """The same, padded to the longest of all."""
        return self._batch(rows, self._longest)

    def _batch(self, rows: Sequence[HeadExample], width: int) -> Batch:
        ids = filled([row.ids for row in rows], width, self._pad_id)
        segments = filled([np.ones(len(row.ids)) for row in rows], width, 0).to(torch.int32)
        types = None
        if any(row.types is not None for row in rows):
            types = filled([np.zeros(len(row.ids)) if row.types is None else row.types for row in rows], width, 0)
        targets = _targets([row.target for row in rows], width)
        if not self._two_stacks:
            return Batch(ids, targets, segments=segments, types=types)
        shifted = shifted_right(ids, self._start_id)
        return Batch(shifted, targets, segments=segments, source_ids=ids, source_segments=segments)


def filled(rows: Sequence[NDArray[Any]], width: int, filler: int) -> Tensor:
    """(B, width) int64: rows of unequal lengths, filled up at their ends."""
    table = np.full((len(rows), width), filler, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table)


def _targets(targets: Sequence[Target], width: int) -> Tensor:
    """(B,) classes or numbers, (B, 2) ends, or (B, width) classes of positions."""
    if isinstance(targets[0], np.ndarray):
        return filled([np.asarray(target) for target in targets], width, IGNORED)
    return torch.tensor(targets, dtype=torch.float32 if isinstance(targets[0], float) else torch.int64)


def head_result(model: nn.Module, batch: Batch) -> Tensor:
    """What the model's head makes of a batch, in fp32 at least: (B, C), (B,) or (B, T, C); see `models/heads.py`.

    ValueError for a batch with several texts in a row, which a head for a text would judge as one.
    """
    if batch.segments is not None and int(batch.segments.max()) > 1:
        raise ValueError("rows for a head hold one text each: these are packed")
    if isinstance(model, EncoderDecoder):
        assert batch.source_ids is not None
        result = model(
            batch.source_ids,
            batch.ids,
            source_positions=batch.source_positions,
            source_segments=batch.source_segments,
            positions=batch.positions,
            segments=batch.segments,
        )
    elif isinstance(model, Encoder):
        result = model(batch.ids, positions=batch.positions, segments=batch.segments, types=batch.types)
    else:
        assert isinstance(model, Decoder)
        result = model(batch.ids, positions=batch.positions, segments=batch.segments)
    wide: Tensor = result.to(torch.promote_types(result.dtype, torch.float32))
    return wide


class Wrapper:
    """Texts and pairs of texts as the model reads them, the longer of two cut at its end until both fit."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, sequence_length: int) -> None:
        """UserError where a row has no room for a text."""
        self.tokenizer, self.has_types = tokenizer, config.segment_types > 0
        self.length = min(sequence_length, config.max_positions)
        self.num_cut = 0
        most = max(len(tokenizer.wrap([])[0]), len(tokenizer.wrap([], [])[0]))
        if self.length <= most:
            raise UserError(
                f"a row of {self.length} tokens has no room for a text: its marks alone are {most}; raise "
                "data.sequence_length"
            )

    def wrap_all(
        self, texts: Sequence[str], pairs: Sequence[str | None]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int8] | None]]:
        """(ids, types) of each text with its second one, where it has one."""
        seconds = iter(self.tokenizer.encode_batch([pair for pair in pairs if pair is not None]))
        for ids, pair in zip(self.tokenizer.encode_batch(texts), pairs, strict=True):
            yield self._wrapped(ids, None if pair is None else next(seconds))

    def _wrapped(self, first: list[int], second: list[int] | None) -> tuple[NDArray[np.int32], NDArray[np.int8] | None]:
        marks = len(self.tokenizer.wrap([], None if second is None else [])[0])
        room = self.length - marks
        if len(first) + len(second or ()) > room:
            self.num_cut += 1
            kept = shares(len(first), len(second or ()), room)
            first, second = first[: kept[0]], second if second is None else second[: kept[1]]
        ids, types = self.tokenizer.wrap(first, second)
        told = self.has_types and any(types)
        return np.array(ids, np.int32), np.array(types, np.int8) if told else None

    @property
    def notes(self) -> list[str]:
        """How many were cut."""
        return [f"{self.num_cut} texts were longer than {self.length} tokens and are cut"] if self.num_cut else []


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of each of two texts is kept in `room`: the longer one gives first."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    return (room - second, second) if second <= room - half else (half, room - half)


def spread(count: int, size: int) -> list[int]:
    """At most `count` of the numbers below `size`, evenly spread."""
    taken = min(count, size)
    return [number * size // taken for number in range(taken)]


@torch.no_grad()
def results_of(
    model: nn.Module,
    rows: HeadRows,
    numbers: Sequence[int],
    rows_at_once: int,
    should_stop: Callable[[], bool],
    progress: Progress,
) -> list[Tensor]:
    """The head's result for each of these rows, on the CPU; raises EvaluationInterrupted once `should_stop()`."""
    found: list[Tensor] = []
    device = next(model.parameters()).device
    progress.start("judging held-out rows", total=len(numbers), unit="rows")
    with evaluating(model):
        for first in range(0, len(numbers), rows_at_once):
            if should_stop():
                raise EvaluationInterrupted
            some = [rows.row(number) for number in numbers[first : first + rows_at_once]]
            found += head_result(model, rows.collate(some).to(device)).cpu().unbind(0)
            progress.advance(len(some))
    progress.finish()
    return found
