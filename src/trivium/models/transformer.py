"""One block and one stack of blocks, on which encoder, decoder and encoder-decoder are thin policies.

Embedded ids (given positions, where these are added) pass L blocks of attention and MLP on a residual stream (Vaswani
et al., 2017; pre-norm as in Radford et al., 2019). What a stack may see is a property of the stack (`causal`); whether
its blocks also look at a source is another (`reads_source`).

Invariants its tests check: equal logits and gradients to `transformers` for equal weights; documents packed into one
row do not reach each other (exactly); any cached split equals one pass; recomputed activations change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trivium.models.attention import Attention, CrossAttention, Shared, View, prefers_blocks
from trivium.models.cache import KeyValues, Memory, Past
from trivium.models.config import ModelConfig
from trivium.models.layers import MLP, build_norm
from trivium.models.masks import alibi_bias, attention_mask, cross_mask, relative_buckets
from trivium.models.positions import Rotation, positions_in_segments, rotation, sinusoids


class Block(nn.Module):
    """Attention (to itself, and to a source) and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, *, reads_source: bool = False) -> None:
        super().__init__()
        normed = layer > 0 or config.norm_first_attention
        sandwich = config.norm_placement == "sandwich"
        self.attention_norm = build_norm(config) if normed else None
        self.attention = Attention(config, layer)
        self.attention_output_norm = build_norm(config) if sandwich else None
        self.cross_norm = build_norm(config) if reads_source else None
        self.cross = CrossAttention(config) if reads_source else None
        self.cross_output_norm = build_norm(config) if reads_source and sandwich else None
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.mlp_output_norm = build_norm(config) if sandwich else None
        self.post_norm = config.norm_placement == "post"
        self.parallel = config.residual == "parallel"
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, shared: Shared, layer: int) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.parallel:
            attended = self.attention(self._normed(x_BTD, self.attention_norm, shared), shared, layer)
            mapped = self.mlp(self._normed(x_BTD, self.mlp_norm, shared))
            return x_BTD + self._dropped(attended) + self._dropped(mapped)
        x_BTD = self._added(
            x_BTD,
            self.attention(self._normed(x_BTD, self.attention_norm, shared), shared, layer),
            self.attention_norm,
            self.attention_output_norm,
        )
        if self.cross is not None:
            crossed = self.cross(self._normed(x_BTD, self.cross_norm, shared), shared)
            x_BTD = self._added(x_BTD, crossed, self.cross_norm, self.cross_output_norm)
        mapped = self.mlp(self._normed(x_BTD, self.mlp_norm, shared))
        return self._added(x_BTD, mapped, self.mlp_norm, self.mlp_output_norm)

    def _normed(self, x_BTD: Tensor, norm: nn.Module | None, shared: Shared) -> Tensor:
        """What enters a sublayer; normed values are cast once, not by each linear layer that reads them."""
        return x_BTD if self.post_norm or norm is None else norm(x_BTD).to(shared.dtype)

    def _added(self, x_BTD: Tensor, written: Tensor, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        """The residual stream after a sublayer."""
        if output_norm is not None:
            written = output_norm(written)
        x_BTD = x_BTD + self._dropped(written)
        return norm(x_BTD) if self.post_norm and norm is not None else x_BTD

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Stack(nn.Module):
    """Everything between token embeddings and head: positions, L blocks and, unless norms come last, a final norm."""

    def __init__(self, config: ModelConfig, layers: int, *, causal: bool, reads_source: bool = False) -> None:
        super().__init__()
        D = config.width
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.position_offset + config.max_positions, D) if learned else None
        self.types = nn.Embedding(config.segment_types, D) if config.segment_types else None
        self.embedding_norm = build_norm(config) if config.embedding_norm else None
        relative = config.positions == "relative"
        self.relative = nn.Embedding(config.relative_buckets, config.heads) if relative else None
        self.blocks = nn.ModuleList(Block(config, layer, reads_source=reads_source) for layer in range(layers))
        self.norm = None if config.norm_placement == "post" else build_norm(config)
        self.config, self.causal, self.reads_source = config, causal, reads_source
        self.gradient_checkpointing = False

    def forward(
        self,
        x_BTD: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: Past | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Past | None]:
        """Token embeddings to hidden states after the final norm, (B, T, D), and the cache that supersedes `cache`."""
        T, length, places = x_BTD.shape[1], x_BTD.shape[1], None
        if prefix is not None and cache is not None and cache.length:
            raise ValueError("a prefix must be read in one pass: the cache already holds positions")
        if cache is not None:
            cache = cache.extended(T, segments)
            length, places = cache.length, cache.places
            segments = None if cache.segments is None else cache.segments[:, :length]
        if positions is None and segments is not None:
            positions = positions_in_segments(segments)[:, length - T :]
        elif positions is None:
            positions = torch.arange(length - T, length, device=x_BTD.device) if places is None else places
        self._refuse_unknown(positions, types, length)
        x_BTD = self._embedded(x_BTD, positions, types)
        shared = self._shared(x_BTD, length, positions, segments, prefix, cache, memory)
        return self._through_blocks(x_BTD, shared, memory), cache

    def _refuse_unknown(self, positions: Tensor, types: Tensor | None, length: int) -> None:
        """ValueError for positions that no table holds (those of a long packed row restart) and for unknown types."""
        learned = self.config.max_positions
        if self.positions is not None and length > learned and int(positions.max()) >= learned:
            longest = int(positions.max()) + 1
            raise ValueError(f"{longest} positions, but this model has learned {learned}: shorten the input")
        if types is not None and self.types is None:
            raise ValueError("this model has no segment types: leave types out")

    def cross_attentions(self) -> list[CrossAttention]:
        """Those of all blocks, in order; empty for a stack that reads no source."""
        return [block.cross for block in self.blocks if isinstance(block, Block) and block.cross is not None]

    def _through_blocks(self, x_BTD: Tensor, shared: Shared, memory: Memory | None) -> Tensor:
        for layer, block in enumerate(self.blocks):
            if memory is not None:  # a layer is given its own, so that one compilation serves all of them
                shared = shared._replace(source_keys=memory.keys[layer], source_values=memory.values[layer])
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, shared, layer, use_reentrant=False, preserve_rng_state=True)
            else:
                x_BTD = block(x_BTD, shared, layer)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def _embedded(self, x_BTD: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """Token embeddings with all that is added to them."""
        config = self.config
        if config.embedding_scale != 1.0:
            # Rounded to the type of the weights first, as Gemma was trained; in fp32 that changes nothing.
            x_BTD = x_BTD * torch.tensor(config.embedding_scale, dtype=x_BTD.dtype, device=x_BTD.device)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions + config.position_offset)
        elif config.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions, config.width).to(x_BTD.dtype)
        if self.types is not None:
            x_BTD = x_BTD + (self.types.weight[0] if types is None else self.types(types))
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return F.dropout(x_BTD, config.dropout, self.training) if config.dropout else x_BTD

    def _shared(
        self,
        x_BTD: Tensor,
        length: int,
        positions: Tensor,
        segments: Tensor | None,
        prefix: Tensor | None,
        cache: KeyValues | None,
        memory: Memory | None,
    ) -> Shared:
        """Masks and rotations, made once for all layers."""
        config, T, device = self.config, x_BTD.shape[1], x_BTD.device
        dtype = _matmul_dtype(x_BTD)
        places = None if cache is None else cache.places
        bias = self._bias(T, length, dtype, device, places)
        blocks_suit = T > 1 and bias is None and prefers_blocks(device, dtype)
        causal = self.causal and prefix is None and length == T and places is None

        def view(window: int) -> View:
            mask = attention_mask(
                T, segments, length, self.causal, dtype, device, window=window, prefix_BS=prefix, places_BT=places
            )
            if bias is not None and mask is None and self.causal and T > 1:  # a bias cannot go with the faster way
                mask = torch.full((T, T), float("-inf"), dtype=dtype, device=device).triu_(1)
            if bias is not None:
                mask = bias if mask is None else bias + mask
            return View(mask, causal, blocks_suit)

        full = view(0)
        turn, local_turn = self._rotations(positions, dtype)
        source = View(None, False, False)
        if memory is not None:
            targets = None if segments is None else segments[:, length - T :]
            mask = cross_mask(targets, memory.segments, dtype)
            source = View(mask, False, T > 1 and prefers_blocks(device, dtype))
        windowed = view(config.sliding_window) if config.sliding_window else full
        return Shared(full, windowed, turn, local_turn, cache, None, None, source, dtype)

    def _bias(
        self, tokens: int, length: int, dtype: torch.dtype, device: torch.device, places: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores by distance, (B or 1, H, T, S)."""
        config = self.config
        if self.relative is not None:
            buckets = relative_buckets(
                tokens, length, self.causal, config.relative_buckets, config.relative_max_distance, device, places
            )
            bias = self.relative(buckets).movedim(-1, -3).to(dtype)
            return bias if bias.ndim == 4 else bias[None]  # type: ignore[no-any-return]
        if config.positions == "alibi":
            return alibi_bias(config.heads, tokens, length, device, places).to(dtype)
        return None

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Rotation | None, Rotation | None]:
        """Those of layers that see everything, and of windowed ones."""
        if self.config.positions != "rotary":
            return None, None
        turn = rotation(positions, self.config, dtype)
        return turn, rotation(positions, self.config, dtype, local=True) if self.config.local_rope_theta else turn


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The type a linear layer computes in when it is given `x`."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
