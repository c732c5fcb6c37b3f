"""A model of two stacks: one reads a source, the other writes a target that looks at it (Vaswani et al., 2017).

The source is encoded once; the keys and values of every cross-attention are computed from it once (`Memory`) and stay,
while the decoder's own grow with the target (`Cache`). Decoder inputs are targets shifted right: they begin with
`config.decoder_start_id`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trivium.models.base import LanguageModel
from trivium.models.cache import Cache, Memory
from trivium.models.config import ModelConfig
from trivium.models.transformer import Stack, prompted_segments


def shifted_right(ids_BT: Tensor, start_id: int) -> Tensor:
    """(B, T): what a decoder reads to predict `ids_BT`, each id one place later and `start_id` first."""
    return torch.cat((torch.full_like(ids_BT[:, :1], start_id), ids_BT[:, :-1]), 1)


class EncoderDecoder(LanguageModel):
    """A source and the beginning of a target to the scores of the target's next token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = Stack(config, config.layers, causal=False)
        self.decoder = Stack(config, config.decoder_layers, causal=True, reads_source=True)

    def encode(self, source_BS: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Hidden states of the source, (B, S, D); `segments` (B, S): which target each position is for, 0 padding.

        Of an encoder with a prompt there are P more, in front, which the target sees too.
        """
        encoded_BSD, _ = self.encoder(self.embedding(source_BS), positions=positions, segments=segments)
        return encoded_BSD  # type: ignore[no-any-return]

    def memory(self, encoded_BSD: Tensor, segments: Tensor | None = None) -> Memory:
        """The keys and values of the source for every layer of the decoder; `segments` as given to `encode`."""
        pairs = [cross.keys_values(encoded_BSD) for cross in self.decoder.cross_attentions()]
        return Memory(
            tuple(keys.transpose(1, 2) for keys, _ in pairs),
            tuple(values.transpose(1, 2) for _, values in pairs),
            prompted_segments(segments, encoded_BSD),
        )

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        memory: Memory,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Hidden states of the target, (B, T, D), and the cache that supersedes `cache`.

        `segments` (B, T): targets attend within their own segment and to the source of the same number.
        """
        embedded = self.embedding(ids_BT)
        return self.decoder(embedded, positions=positions, segments=segments, cache=cache, memory=memory)  # type: ignore[no-any-return]

    def forward(
        self,
        source_BS: Tensor,
        ids_BT: Tensor,
        *,
        source_positions: Tensor | None = None,
        source_segments: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """The head's result for the target `ids_BT` (decoder input) of `source_BS`; of an `lm` head (B, T, V)."""
        encoded_BSD = self.encode(source_BS, positions=source_positions, segments=source_segments)
        memory = self.memory(encoded_BSD, source_segments)
        hidden_BTD, _ = self.hidden(ids_BT, memory=memory, positions=positions, segments=segments)
        return self.result(hidden_BTD, segments)
