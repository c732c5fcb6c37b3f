"""A model whose positions see the past: a causal language model (Radford et al., 2018)."""

from __future__ import annotations

from torch import Tensor

from trivium.models.base import LanguageModel
from trivium.models.cache import Past
from trivium.models.config import ModelConfig
from trivium.models.transformer import Stack


class Decoder(LanguageModel):
    """Ids to the scores of the next token (or to another head's result)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.stack = Stack(config, config.layers, causal=True)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: Past | None = None,
    ) -> tuple[Tensor, Past | None]:
        """Hidden states after the final norm, (B, T, D), and the cache that supersedes `cache`.

        `segments` (B, T): positions attend only within their own segment; 0 is padding. None: one document a row (or,
        with a cache that holds segments, the continuation of each row's last one).
        `positions` (B, T) int64; None: counted from 0 in each segment, and on from what the cache holds.
        `prefix` (B, T) bool: positions that all of their segment may see, also from before them.
        """
        embedded = self.embedding(ids_BT)
        return self.stack(embedded, positions=positions, segments=segments, prefix=prefix, cache=cache)  # type: ignore[no-any-return]

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """The head's result; of an `lm` head the logits of the next token at each position, (B, T, V)."""
        hidden_BTD, _ = self.hidden(ids_BT, positions=positions, segments=segments, prefix=prefix)
        return self.result(hidden_BTD, segments)
