"""A model whose positions see everything: a masked language model, and what is tuned from it (Devlin et al., 2019)."""

from __future__ import annotations

from torch import Tensor

from trivium.models.base import LanguageModel
from trivium.models.config import ModelConfig
from trivium.models.heads import OF_A_TEXT
from trivium.models.transformer import Stack, prompted_segments


class Encoder(LanguageModel):
    """Ids to scores for each position, or to a result for the whole text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.stack = Stack(config, config.layers, causal=False)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of all positions of the text, (B, T, D).

        `segments` (B, T): positions attend only within their own segment; 0 is padding; None: one text a row.
        `types` (B, T) int64: first or second text of a pair, for models with segment embeddings; None: 0.
        """
        hidden_BTD, _ = self.stack(self.embedding(ids_BT), positions=positions, segments=segments, types=types)
        return hidden_BTD[:, -ids_BT.shape[1] :]  # type: ignore[no-any-return]

    def forward(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """The head's result; of an `lm` head the scores of what stands at each position, (B, T, V).

        A head for a whole text sees the positions of a prompt as well: the first of them is then the first of all.
        """
        if self.config.head not in OF_A_TEXT:
            return self.result(self.hidden(ids_BT, positions=positions, segments=segments, types=types), segments)
        hidden_BTD, _ = self.stack(self.embedding(ids_BT), positions=positions, segments=segments, types=types)
        return self.result(hidden_BTD, prompted_segments(segments, hidden_BTD))
