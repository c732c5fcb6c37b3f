"""What encoder, decoder and encoder-decoder have in common: a table of tokens in front, a head behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trivium.models.config import ModelConfig
from trivium.models.heads import Head, Projection
from trivium.models.layers import Embedding


class LanguageModel(nn.Module):
    """A model of one of the three kinds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.head = Head(config)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its hidden states: that of the table of tokens, or where this is packed, what it computes in."""
        packed: Tensor | None = getattr(self.embedding, "typed", None)
        return (self.embedding.weight if packed is None else packed).dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): unnormalised log-probabilities of tokens; for `lm` heads."""
        self._needs_token_scores()
        return self.head(hidden, None, self.embedding)  # type: ignore[no-any-return]

    def projection(self, hidden: Tensor) -> Projection:
        """The same, not multiplied out, for losses that never hold all logits at once."""
        self._needs_token_scores()
        return self.head.projection(hidden, self.embedding)

    def _needs_token_scores(self) -> None:
        if self.config.head != "lm":
            raise ValueError(f"a model with a {self.config.head} head has no token scores")

    def result(self, hidden_BTD: Tensor, segments: Tensor | None = None) -> Tensor:
        """What the head makes of hidden states; see `Head.forward`."""
        return self.head(hidden_BTD, segments, self.embedding)  # type: ignore[no-any-return]
