"""Texts to vectors: the mean of the last hidden states over the real tokens, of length 1.

The mean is that of Sentence-BERT (Reimers & Gurevych, 2019), the special tokens around a text included. It is meant for
encoders that were trained so that close texts have close vectors. Of an encoder-decoder the encoder's states are used.
A decoder's are only a makeshift: its first tokens know nothing of what follows.

Invariant its test checks: the vectors are those of `sentence-transformers`' recipe computed with `transformers`, and
do not depend on the batch.

Shapes: N texts, B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from trivium.generation.encoding import TOKENS_PER_BATCH, Inputs, hidden_states, read_all, wrap_all
from trivium.models.build import Model
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer


def embed(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress = SILENT,
    description: str = "reading texts",
) -> Tensor:
    """One vector of length 1 for each text: (N, D) fp32 on the CPU.

    `tokens_per_batch` positions are read at a time (at least one text); `description` is what `progress` calls the
    work. Raises UserError when a text is too long for the model's learned positions.
    """

    def means(inputs: Inputs) -> Tensor:
        hidden_BTD = hidden_states(model, inputs).float()
        if inputs.segments_BT is None:
            return hidden_BTD.mean(1)
        real_BT1 = (inputs.segments_BT > 0)[:, :, None]
        return hidden_BTD.masked_fill(~real_BT1, 0).sum(1) / real_BT1.sum(1)

    wrapped = wrap_all(tokenizer, model.config, texts)
    vectors = read_all(
        model, wrapped, means, tokens_per_batch=tokens_per_batch, progress=progress, description=description
    )
    return F.normalize(torch.stack(vectors), dim=-1) if vectors else torch.empty(0, model.config.width)
