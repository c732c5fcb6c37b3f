"""The record that flows from data to model: `Batch`.

Shapes: B rows in this micro-batch, T positions in a row, S positions of a source.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Targets with this value are not learned (padding, prompts): torch's own convention for cross-entropy.
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of token ids and what is to be learned from them."""

    ids: Tensor
    """(B, T) int64: the model's input."""
    targets: Tensor
    """(B, T) int64: the id to predict at each position, or `IGNORED`."""
    positions: Tensor | None = None
    """(B, T) int64: position within the document, restarting at 0 at each one; None means 0..T-1 in every row."""
    segments: Tensor | None = None
    """(B, T) int32: which document of the row a position belongs to (1, 2, ...; 0 is padding); positions attend only
    within their own segment. None means that every row is one document without padding."""
    types: Tensor | None = None
    """(B, T) int64: which kind of text a position belongs to (0 the first text of a pair, 1 the second), for models
    with segment embeddings; None means 0."""
    prefix: Tensor | None = None
    """(B, T) bool: positions that their whole document may see, also from before them (prefix language models); None
    means none."""
    source_ids: Tensor | None = None
    """(B, S) int64: what the encoder of an encoder-decoder reads; `ids` are then what its decoder reads. None for
    models of one stack."""
    source_positions: Tensor | None = None
    """(B, S) int64: as `positions`, of the source."""
    source_segments: Tensor | None = None
    """(B, S) int32: as `segments`, of the source; a target sees the source that has its own number."""

    @property
    def num_targets(self) -> int:
        """How many positions are learned."""
        return int((self.targets != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """How many input positions hold a real token (padding excluded), those of the source among them."""
        return _num_tokens(self.ids, self.segments) + _num_tokens(self.source_ids, self.source_segments)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None})


def _num_tokens(ids: Tensor | None, segments: Tensor | None) -> int:
    if segments is not None:
        return int((segments > 0).sum())
    return 0 if ids is None else ids.numel()
