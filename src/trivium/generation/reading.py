"""The model's side of a batch of texts: what it has read, and its scores of what comes next.

A decoder reads prompts; those of unequal length are padded on the left. Padding is a segment of its own, so that
attention does not reach it, and positions count from the first real token. An encoder-decoder reads its sources once
(padded on the right), keeps their keys and values (`Memory`), and its decoder begins with `config.decoder_start_id`.
Afterwards both read one token of each row at a time, and only the newest position's logits are computed.

Shapes: B rows, T positions, S positions of a source, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trivium.generation.choosing import not_finite
from trivium.models.cache import Cache, Memory
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder

# New positions the KV cache has room for at first; it grows when a text turns out longer.
CACHE_STEP = 512

GeneratingModel = Decoder | EncoderDecoder


class Reading:
    """Rows of ids that a model has read."""

    @torch.inference_mode()
    def __init__(self, model: GeneratingModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        """Read `prompts` (of an encoder-decoder: sources); about `room` tokens will follow."""
        self.model = model
        self.device = model.device
        self.memory: Memory | None = None
        if isinstance(model, EncoderDecoder):
            source_BS, source_segments_BS = padded(prompts, self.device, on_the_left=False)
            self.memory = model.memory(model.encode(source_BS, segments=source_segments_BS), source_segments_BS)
            ids_BT, segments_BT = torch.full((len(prompts), 1), model.config.decoder_start_id, device=self.device), None
            lengths = [1] * len(prompts)
        else:
            ids_BT, segments_BT = padded(prompts, self.device, on_the_left=True)
            lengths = [len(prompt) for prompt in prompts]
        self.lengths_B = torch.tensor(lengths, device=self.device)
        capacity = ids_BT.shape[1] + min(room, CACHE_STEP)
        self.cache = Cache.empty(model.config, len(prompts), capacity, self.device, model.dtype)
        self._read(ids_BT, segments_BT, None)

    @torch.inference_mode()
    def logprobs(self) -> Tensor:
        """(B, V) fp32 log-probabilities of each row's next token. UserError when they are not numbers."""
        logprobs_BV = self.logits_BV.float().log_softmax(-1)
        if logprobs_BV[:, 0].isnan().any():  # one NaN or +inf makes its whole row NaN
            raise not_finite(self.logits_BV.dtype)
        return logprobs_BV

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int]) -> None:
        """Read one more token of each row."""
        ids_B1 = torch.tensor(tokens, device=self.device)[:, None]
        self._read(ids_B1, None, self.lengths_B[:, None])
        self.lengths_B = self.lengths_B + 1

    @torch.inference_mode()
    def reorder(self, index: Sequence[int], *, same_sources: bool = False) -> None:
        """Row i goes on from what was row `index[i]`; rows may be left out or continued more than once.

        With `same_sources` every row has the source it had before (beams of one text that change places). The logits
        are those of the next `advance`.
        """
        chosen = torch.tensor(index, device=self.device)
        self.cache, self.lengths_B = self.cache.reorder(chosen), self.lengths_B[chosen]
        if self.memory is not None and not same_sources:
            self.memory = self.memory.reorder(chosen)

    def _read(self, ids_BT: Tensor, segments_BT: Tensor | None, positions_BT: Tensor | None) -> None:
        """Extend the cache by `ids_BT`, and keep the logits of what follows the last of them."""
        model = self.model
        if isinstance(model, EncoderDecoder):
            assert self.memory is not None
            hidden_BTD, extended = model.hidden(ids_BT, memory=self.memory, positions=positions_BT, cache=self.cache)
        else:
            hidden_BTD, extended = model.hidden(ids_BT, positions=positions_BT, segments=segments_BT, cache=self.cache)
        assert extended is not None
        self.cache = extended
        self.logits_BV: Tensor = model.logits(hidden_BTD[:, -1])


def padded(texts: Sequence[Sequence[int]], device: torch.device, *, on_the_left: bool) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T), padded with id 0, and segments (B, T): 0 padding, 1 text (None: no padding)."""
    longest = max(map(len, texts))
    pads = [[0] * (longest - len(text)) for text in texts]
    rows = [[*pad, *text] if on_the_left else [*text, *pad] for pad, text in zip(pads, texts, strict=True)]
    ids_BT = torch.tensor(rows, device=device)
    if not any(pads):
        return ids_BT, None
    counts_B1 = torch.tensor([[len(pad)] for pad in pads], device=device)
    index_T = torch.arange(longest, device=device)
    return ids_BT, (index_T >= counts_B1 if on_the_left else index_T < longest - counts_B1).int()
