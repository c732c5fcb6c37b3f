"""From ids to hidden states to logits: one block, one stack of blocks, and the decoder that is a thin policy over it.

Ids are embedded (and given positions, where these are added), pass L blocks of attention and MLP on a residual stream
(Vaswani et al., 2017; pre-norm as in Radford et al., 2019), are normalised and projected to the vocabulary. What a
stack may see is an argument (`causal`): the encoder of a later day is the same stack with `causal=False`, and an
encoder-decoder is two of them.

Invariants its tests check: equal logits and gradients to `transformers` for equal weights; documents packed into one
row do not reach each other (exactly); any cached split equals one pass; recomputed activations change nothing.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trivium.models.attention import Attention, Cache, Shared, attention_mask, prefers_blocks
from trivium.models.config import Kind, ModelConfig
from trivium.models.layers import MLP, build_norm
from trivium.models.positions import positions_in_segments, rotation, sinusoids


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.pre_norm = config.norm_placement == "pre"
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, shared: Shared, layer: int) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.pre_norm:
            # Normed values are cast once here, not once by each of the linear layers that read them under autocast.
            attended = self.attention(self.attention_norm(x_BTD).to(shared.dtype), shared, layer)
            x_BTD = x_BTD + self._dropped(attended)
            return x_BTD + self._dropped(self.mlp(self.mlp_norm(x_BTD).to(shared.dtype)))
        x_BTD = self.attention_norm(x_BTD + self._dropped(self.attention(x_BTD, shared, layer)))
        return self.mlp_norm(x_BTD + self._dropped(self.mlp(x_BTD)))  # type: ignore[no-any-return]

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Stack(nn.Module):
    """L blocks and, when norms come first, the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = build_norm(config) if config.norm_placement == "pre" else None
        self.gradient_checkpointing = False

    def forward(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        """(B, T, D) -> (B, T, D), normalised."""
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, shared, layer, use_reentrant=False, preserve_rng_state=True)
            else:
                x_BTD = block(x_BTD, shared, layer)
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Decoder(nn.Module):
    """A causal language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width) if config.positions == "learned" else None
        self.stack = Stack(config)
        self.head = None if config.tied_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass; see `set_gradient_checkpointing`."""
        return self.stack.gradient_checkpointing

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Hidden states after the final norm, (B, T, D), and the cache that supersedes `cache`.

        `segments` (B, T): positions attend only within their own segment; 0 is padding. None: one document a row (or,
        with a cache that holds segments, the continuation of each row's last one).
        `positions` (B, T) int64; None: counted from 0 in each segment, and on from what the cache holds.
        """
        T, past = ids_BT.shape[1], 0 if cache is None else cache.length
        if self.positions is not None and past + T > self.config.max_positions:
            raise ValueError(
                f"{past + T} positions, but this model has learned {self.config.max_positions}: shorten the input"
            )
        if cache is not None:
            cache = cache.extended(T, segments)
            segments = None if cache.segments is None else cache.segments[:, : cache.length]
        if positions is None and segments is not None:
            positions = positions_in_segments(segments)[:, past:]
        elif positions is None:
            positions = torch.arange(past, past + T, device=ids_BT.device)
        x_BTD = self._embedded(ids_BT, positions)
        dtype = _matmul_dtype(x_BTD)
        turn = None
        if self.config.positions == "rotary":
            turn = rotation(positions, self.config.head_width, self.config.rope_theta, dtype)
        mask = attention_mask(T, segments, past + T, True, dtype, ids_BT.device)
        by_blocks = past == 0 and T > 1 and prefers_blocks(ids_BT.device, dtype)
        return self.stack(x_BTD, Shared(True, mask, turn, cache, dtype, by_blocks)), cache

    def forward(self, ids_BT: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of the next token at each position, (B, T, V)."""
        hidden_BTD, _ = self.hidden(ids_BT, positions=positions, segments=segments)
        return self.logits(hidden_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """(..., D) -> (..., V): unnormalised log-probabilities of the next token."""
        if self.head is None:
            return F.linear(hidden_BTD, self.embedding.weight)
        return self.head(hidden_BTD)  # type: ignore[no-any-return]

    def head_weight(self) -> Tensor:
        """(V, D): the matrix `logits` multiplies by, for losses that never hold all logits at once."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _embedded(self, ids_BT: Tensor, positions: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions)
        elif self.config.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions, self.config.width).to(x_BTD.dtype)
        if self.config.dropout:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        return x_BTD  # type: ignore[no-any-return]


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The type a linear layer computes in when it is given `x`."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


# The model for each kind of stack.
MODELS: dict[Kind, type[Decoder]] = {"decoder": Decoder}


def build_model(config: ModelConfig) -> Decoder:
    """The model a config describes, with torch's default weights: `initialise` it or load weights into it."""
    return MODELS[config.kind](config)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Recompute each block's activations in the backward pass instead of keeping them (Chen et al., 2016)."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.gradient_checkpointing = on


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw all weights of a fresh model: the only place where initial weights are decided.

    Matrices and tables are normal(0, init_std); the two projections of a block that write to the residual stream are
    scaled by 1/sqrt(2 L) (Radford et al., 2019), since 2 L of them add up there. Norm weights are 1, biases 0. Each
    parameter has its own generator, seeded by (seed, its name): order, device and other parameters have no influence.
    """
    residual_std = config.init_std / math.sqrt(2 * config.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                std = residual_std if name.endswith(("attention.output.weight", "mlp.down.weight")) else config.init_std
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
                draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
                parameter.copy_(draw)
