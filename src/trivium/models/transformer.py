"""One block and one stack of blocks, on which encoder, decoder and encoder-decoder are thin policies.

Embedded ids (given positions, where these are added) pass L blocks of attention and MLP on a residual stream (Vaswani
et al., 2017; pre-norm as in Radford et al., 2019). What a stack may see is a property of the stack (`causal`); whether
its blocks also look at a source is another (`reads_source`).

Invariants its tests check: equal logits and gradients to `transformers` for equal weights; documents packed into one
row do not reach each other (exactly); any cached split equals one pass; recomputed activations change nothing.

Learned positions that are no text may come before every document (`learned_positions.py`); a stack that sees both ways
is given them as vectors in front of its text, since they see the text too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trivium.errors import UserError
from trivium.models.attention import Attention, CrossAttention, Shared, View, behind, prefers_blocks
from trivium.models.cache import KeyValues, Memory, Past
from trivium.models.config import ModelConfig
from trivium.models.layers import MLP, build_norm
from trivium.models.learned_positions import LearnedPositions, Recorder
from trivium.models.masks import alibi_bias, attention_mask, cross_mask, relative_buckets, with_learned
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
        self.prefix: nn.Module | None = None
        """Called with the stack and the type of its input it gives the `LearnedPositions`, or None for none."""
        self.prompt: nn.Module | None = None
        """Of a stack that sees both ways: called, it gives vectors to put before each text, (P, D), or None."""

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
        """Token embeddings to hidden states after the final norm, (B, T, D), and the cache that supersedes `cache`.

        With a `prompt` there are P hidden states more, in front. UserError where its rows hold several texts, and for
        more positions than the model's table holds.
        """
        if self.prompt is not None:
            x_BTD, positions, segments, types = self._prompted(x_BTD, positions, segments, types)
        learned: LearnedPositions | None = None if self.prefix is None else self.prefix(self, x_BTD.dtype)
        P = 0 if learned is None else learned.length
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
        positions = positions + P if P else positions
        self._refuse_unknown(positions, types, length + P)
        x_BTD = self._embedded(x_BTD, positions, types)
        shared = self._shared(x_BTD, length, positions, segments, prefix, cache, memory, P)
        if learned is not None and learned.source_keys and shared.source.mask is not None:
            shared = shared._replace(source=shared.source._replace(mask=F.pad(shared.source.mask, (P, 0))))
        return self._through_blocks(x_BTD, shared, memory, learned), cache

    def read_before_all(self, x_PD: Tensor) -> LearnedPositions:
        """The keys and values that vectors have which stand before everything a causal stack reads, (P, D)."""
        P = len(x_PD)
        positions, recorder = torch.arange(P, device=x_PD.device), Recorder(P, len(self.blocks))
        self._refuse_unknown(positions, None, P)
        x_BTD = self._embedded(x_PD[None], positions, None)
        shared = self._shared(x_BTD, P, positions, None, None, recorder, None)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, shared, layer)
        return recorder.learned()

    def _prompted(
        self, x_BTD: Tensor, positions: Tensor | None, segments: Tensor | None, types: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """All that `forward` is given, with the prompt's P positions in front; they are of segment 1 and type 0."""
        assert self.prompt is not None
        prompt_PD: Tensor | None = self.prompt()
        if prompt_PD is None:
            return x_BTD, positions, segments, types
        if segments is not None and int(segments.max()) > 1:
            raise UserError("a prompt before an encoder's text needs rows of one text each: set data.packing=false")
        P, B = len(prompt_PD), x_BTD.shape[0]
        if positions is None and segments is not None:
            positions = positions_in_segments(segments)
        if positions is not None:
            first = torch.arange(P, device=positions.device, dtype=positions.dtype)
            positions = torch.cat((first.expand(*positions.shape[:-1], P), positions + P), -1)
        segments = None if segments is None else F.pad(segments, (P, 0), value=1)
        types = None if types is None else F.pad(types, (P, 0))
        prompt_BPD = prompt_PD.to(x_BTD.dtype).expand(B, -1, -1)
        return torch.cat((prompt_BPD, x_BTD), 1), positions, segments, types

    def _refuse_unknown(self, positions: Tensor, types: Tensor | None, length: int) -> None:
        """UserError for positions that no table holds (those of a long packed row restart); ValueError for types."""
        known = self.config.max_positions
        if self.positions is not None and length > known and int(positions.max()) >= known:
            longest = int(positions.max()) + 1
            raise UserError(f"{longest} positions, but this model has learned {known}: shorten the input")
        if types is not None and self.types is None:
            raise ValueError("this model has no segment types: leave types out")

    def cross_attentions(self) -> list[CrossAttention]:
        """Those of all blocks, in order; empty for a stack that reads no source."""
        return [block.cross for block in self.blocks if isinstance(block, Block) and block.cross is not None]

    def _through_blocks(
        self, x_BTD: Tensor, shared: Shared, memory: Memory | None, learned: LearnedPositions | None
    ) -> Tensor:
        for layer, block in enumerate(self.blocks):
            if memory is not None:  # a layer is given its own, so that one compilation serves all of them
                keys, values = memory.keys[layer], memory.values[layer]
                if learned is not None and learned.source_keys:
                    keys, values = (
                        behind(learned.source_keys[layer], keys),
                        behind(learned.source_values[layer], values),
                    )
                shared = shared._replace(source_keys=keys, source_values=values)
            if learned is not None:
                shared = shared._replace(prefix_keys=learned.keys[layer], prefix_values=learned.values[layer])
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
        learned: int = 0,
    ) -> Shared:
        """Masks and rotations, made once for all layers; `learned` positions come before every document."""
        config, T, device = self.config, x_BTD.shape[1], x_BTD.device
        dtype = _matmul_dtype(x_BTD)
        places = None if cache is None else cache.places
        bias = self._bias(T, length, dtype, device, places)
        blocks_suit = T > 1 and bias is None and prefers_blocks(device, dtype)
        causal = self.causal and prefix is None and length == T and places is None and not learned
        before = self._bias(T, learned, dtype, device, _rows(positions)) if learned else None

        def view(window: int) -> View:
            mask = attention_mask(
                T, segments, length, self.causal, dtype, device, window=window, prefix_BS=prefix, places_BT=places
            )
            explicit = bias is not None or learned  # neither goes with the faster way
            if explicit and mask is None and self.causal and T > 1:
                mask = torch.full((T, T), float("-inf"), dtype=dtype, device=device).triu_(1)
            if bias is not None:
                mask = bias if mask is None else bias + mask
            if learned:
                mask = with_learned(mask, before, _rows(positions), learned, length, window, dtype)
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


def prompted_segments(segments: Tensor | None, hidden_BTD: Tensor) -> Tensor | None:
    """`segments` for hidden states that may have those of a prompt in front, which is of segment 1."""
    more = 0 if segments is None else hidden_BTD.shape[1] - segments.shape[1]
    return F.pad(segments, (more, 0), value=1) if segments is not None and more else segments


def _rows(positions: Tensor) -> Tensor:
    """(B or 1, T)."""
    return positions if positions.ndim == 2 else positions[None]


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The type a linear layer computes in when it is given `x`."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
