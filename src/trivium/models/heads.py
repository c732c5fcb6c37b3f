"""What stands on the last hidden states: token scores, class scores, the ends of an answer, or one number.

hidden states -> (one of them, for a text as a whole) -> an optional layer of the same width -> a projection. BERT's
pooler, RoBERTa's and BART's dense layer and the transform before BERT's token scores are all that one layer.

Dropout acts once, before the last projection of a class head (some originals also drop before the layer before it).

Invariant its tests check: `projection` multiplied out is `forward`, so that a loss may leave the logits unmade.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.config import ModelConfig
from trivium.models.layers import ACTIVATIONS, Embedding, build_norm

# Heads that give one result for a text, not one for each position.
OF_A_TEXT = ("classification", "scalar")


class Projection(NamedTuple):
    """Logits not yet multiplied out: cap(hidden @ weight.T + bias), with cap(z) = c tanh(z / c) for a c above 0."""

    hidden: Tensor
    """(..., D)"""
    weight: Tensor
    """(V, D)"""
    bias: Tensor | None
    """(V,)"""
    softcap: float
    """c; 0: no cap."""

    def logits(self) -> Tensor:
        """(..., V)."""
        return capped(F.linear(self.hidden, self.weight, self.bias), self.softcap)


def capped(logits: Tensor, cap: float) -> Tensor:
    """c tanh(z / c) for a cap c above 0; z for 0."""
    return (logits / cap).tanh() * cap if cap else logits


class Head(nn.Module):
    """The head a config asks for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        hidden = config.head_hidden != "none"
        self.hidden = nn.Linear(D, D, bias=config.head_hidden_bias) if hidden else None
        self.norm = build_norm(config) if config.head_hidden == "activation_norm" else None
        tied = config.head == "lm" and config.tied_embeddings
        projects = config.head != "none" and not tied
        self.output = nn.Linear(D, config.head_outputs, bias=config.head_bias) if projects else None
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if tied and config.head_bias else None
        self.config = config

    def forward(self, hidden_BTD: Tensor, segments: Tensor | None = None, embedding: Embedding | None = None) -> Tensor:
        """The head's result: (B, T, V) for `lm` (which needs the embedding table where it is tied), (B, T, C) for
        tokens and spans, (B, C) for a text, (B,) for `scalar`, and hidden states as they are for `none`."""
        kind = self.config.head
        if kind == "none":
            return hidden_BTD
        if kind == "lm":
            hidden = self._scaled(self.transformed(hidden_BTD))
            if self.output is not None:
                return capped(self.output(hidden), self.config.logit_softcap)
            assert embedding is not None
            return capped(embedding.scores(hidden, self.bias), self.config.logit_softcap)
        assert self.output is not None
        if kind in OF_A_TEXT:
            hidden_BTD = self.pooled(hidden_BTD, segments)
        result: Tensor = self.output(self._dropped(self.transformed(hidden_BTD)))
        return result[..., 0] if kind == "scalar" else result

    def projection(self, hidden_BTD: Tensor, embedding: Embedding) -> Projection:
        """The `lm` head's logits, not multiplied out."""
        hidden = self._scaled(self.transformed(hidden_BTD))
        if self.output is None:
            return Projection(hidden, embedding.weight, self.bias, self.config.logit_softcap)
        return Projection(hidden, self.output.weight, self.output.bias, self.config.logit_softcap)

    def pooled(self, hidden_BTD: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, D): the hidden state that stands for each text; `segments` (B, T) tells padding (0)."""
        if self.config.pooling == "first" and segments is None:
            return hidden_BTD[:, 0]
        B, T, _ = hidden_BTD.shape
        if segments is None:
            segments = torch.ones(B, T, dtype=torch.int32, device=hidden_BTD.device)
        real_BT = segments > 0
        if self.config.pooling == "mean":
            weights_BT1 = real_BT[:, :, None].to(hidden_BTD.dtype)
            return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
        index = torch.arange(T, device=hidden_BTD.device)
        if self.config.pooling == "last":
            place = torch.where(real_BT, index, 0).amax(1)
        else:
            place = torch.where(real_BT, index, T - 1).amin(1)
        return hidden_BTD[torch.arange(B, device=hidden_BTD.device), place]

    def transformed(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D): through the layer between hidden states and projection, where there is one."""
        if self.hidden is None:
            return hidden
        hidden = self.hidden(hidden)
        kind = self.config.head_hidden
        if kind in ("tanh", "relu"):
            return hidden.tanh() if kind == "tanh" else hidden.relu()
        hidden = ACTIVATIONS[self.config.activation].value(hidden)
        return hidden if self.norm is None else self.norm(hidden)

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.config.logit_scale == 1.0 else hidden * self.config.logit_scale

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
