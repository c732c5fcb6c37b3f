"""The record that flows from data to model: `Batch`.

Shapes: B rows in this micro-batch, T positions in a row.
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

    @property
    def num_targets(self) -> int:
        """How many positions are learned."""
        return int((self.targets != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """How many input positions hold a real token (padding excluded)."""
        return self.ids.numel() if self.segments is None else int((self.segments > 0).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None})
