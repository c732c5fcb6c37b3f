"""Texts as models read them whole: wrapped, batched by like length, padded.

Texts (or pairs of texts) get the special tokens and types that the model's inputs have. Padding is a segment of its
own, which nothing attends to, so that results do not depend on the batch (tested for all that is computed this way,
beside a broken control).

Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.generation.mode import evaluating
from trivium.generation.prompts import document_start, refuse_too_long, refuse_unknown_ids
from trivium.generation.reading import padded
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# Positions read at a time, unless one text is longer.
TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Wrapped:
    """One text or pair as the model reads it."""

    ids: list[int]
    types: list[int]
    """Of each id: 0 or 1, the text of a pair that it belongs to."""


@dataclass(frozen=True)
class Inputs:
    """A batch of them."""

    ids_BT: Tensor
    segments_BT: Tensor | None
    """0 for padding; None: there is none."""
    types_BT: Tensor | None
    """None: every type is 0, or the model does not tell types apart."""


def wrap_all(
    tokenizer: Tokenizer, config: ModelConfig, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> list[Wrapped]:
    """The texts (each with the one of `pairs` that has its place) as the model reads them.

    Raises UserError when one is too long for the model or holds an id that it does not know.
    """
    if isinstance(texts, str) or isinstance(pairs, str):
        raise TypeError("texts is a sequence of texts: for a single one, give [text]")
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(pairs)} second texts for {len(texts)} first ones")
    firsts = tokenizer.encode_batch(texts)
    seconds = [None] * len(texts) if pairs is None else tokenizer.encode_batch(pairs)
    return [
        wrap(tokenizer, config, first, second, name=f"text {number}")
        for number, (first, second) in enumerate(zip(firsts, seconds, strict=True))
    ]


def wrap(
    tokenizer: Tokenizer, config: ModelConfig, ids: Sequence[int], pair: Sequence[int] | None = None, *, name: str
) -> Wrapped:
    """The ids of one text or pair, which errors call `name`. Nothing becomes the token that begins documents."""
    wrapped, types = tokenizer.wrap(ids, pair)
    if not wrapped:
        wrapped, types = [document_start(tokenizer)], [0]
    refuse_too_long(wrapped, config.positions, config.max_positions, name)
    refuse_unknown_ids(wrapped, config.vocab_size, name)
    return Wrapped(wrapped, types)


@torch.inference_mode()
def read_all(
    model: Model,
    texts: Sequence[Wrapped],
    compute: Callable[[Inputs], Tensor],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress = SILENT,
    description: str = "reading texts",
) -> list[Tensor]:
    """For each text its row of `compute(inputs)`, (B, ...), in fp32 on the CPU; texts of like length share a batch."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number].ids))
    rows: dict[int, Tensor] = {}
    progress.start(description, total=len(texts), unit="text" if len(texts) == 1 else "texts")
    with evaluating(model):
        while order:
            count = max(1, tokens_per_batch // len(texts[order[0]].ids))
            some, order = order[:count], order[count:]
            results = compute(_inputs(model, [texts[number] for number in some]))
            rows.update(zip(some, results.float().cpu(), strict=True))
            progress.advance(len(some))
    progress.finish()
    return [rows[number] for number in range(len(texts))]


def hidden_states(model: Model, inputs: Inputs) -> Tensor:
    """(B, T, D): the last hidden states of a decoder or an encoder; of an encoder-decoder those of its encoder."""
    if isinstance(model, Encoder):
        return model.hidden(inputs.ids_BT, segments=inputs.segments_BT, types=inputs.types_BT)
    if isinstance(model, Decoder):
        hidden_BTD, _ = model.hidden(inputs.ids_BT, segments=inputs.segments_BT)
        return hidden_BTD
    encoded_BSD = model.encode(inputs.ids_BT, segments=inputs.segments_BT)
    return encoded_BSD[:, -inputs.ids_BT.shape[1] :]  # a learned prompt stands before the text


def _inputs(model: Model, texts: Sequence[Wrapped]) -> Inputs:
    device = model.device
    ids_BT, segments_BT = padded([text.ids for text in texts], device, on_the_left=False)
    types_BT = None
    if model.config.segment_types and any(any(text.types) for text in texts):
        types_BT, _ = padded([text.types for text in texts], device, on_the_left=False)
    return Inputs(ids_BT, segments_BT, types_BT)
