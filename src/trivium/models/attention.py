"""Attention with grouped key/value heads: of a sequence to itself, and of a target to its source.

Scaled dot-product attention (Vaswani et al., 2017) with K key/value heads shared by H query heads (Ainslie et al.,
2023), computed by `torch.nn.functional.scaled_dot_product_attention`, or in half precision on CPU by `block_attention`;
where scores are capped (Gemma 2), by the plain formula. Which key a query may see is decided once per forward pass
(`masks.py`) and shared by all layers.

The cache is an argument and a return, never an attribute of a layer. Invariants its tests check: any split of a
sequence into cached chunks gives the logits of one pass; tokens of one segment cannot reach another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.block_attention import block_attention
from trivium.models.cache import KeyValues
from trivium.models.config import ModelConfig
from trivium.models.layers import build_norm
from trivium.models.positions import Rotation, rotate


def prefers_blocks(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `block_attention` beats SDPA here."""
    return dtype in (torch.bfloat16, torch.float16) and device.type == "cpu"


class View(NamedTuple):
    """What the queries of some layers see."""

    mask: Tensor | None
    """Added to the scores, (B or 1, H or 1, T, S); None: nothing is hidden but, if `causal`, the future."""
    causal: bool
    """Whether T equals S and query t sees none but keys 0 to t (the mask then says so too, where there is one)."""
    by_blocks: bool
    """Whether attention is computed by `block_attention`, which is faster here than SDPA."""


class Shared(NamedTuple):
    """What all layers of one forward pass have in common."""

    full: View
    """Of the layers that see everything."""
    windowed: View
    """Of the layers with a sliding window (the same, where there are none)."""
    rotation: Rotation | None
    """How queries and keys are turned, if positions are rotary."""
    local_rotation: Rotation | None
    """The same in windowed layers."""
    cache: KeyValues | None
    """Keys and values of the past, with room made for those of this pass."""
    source_keys: Tensor | None
    """(B, K, S, N): those of the source for one layer of an encoder-decoder's decoder; its stack fills them in."""
    source_values: Tensor | None
    """(B, K, S, N)."""
    source: View
    """What targets see of the source."""
    dtype: torch.dtype
    """The type matrix products are computed in (autocast's, where it is on)."""
    prefix_keys: Tensor | None = None
    """(1, K, P, N): those of learned positions before every document, for one layer; its stack fills them in."""
    prefix_values: Tensor | None = None
    """(1, K, P, N)."""


class _Attention(nn.Module):
    """The four projections and the product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, N = config.width, config.head_width
        self.query = nn.Linear(D, config.heads * N, bias=config.qkv_bias)
        self.key = nn.Linear(D, config.kv_heads * N, bias=config.qkv_bias)
        self.value = nn.Linear(D, config.kv_heads * N, bias=config.qkv_bias)
        self.output = nn.Linear(config.heads * N, D, bias=config.attention_output_bias)
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, N
        self.dropout, self.softcap = config.attention_dropout, config.attention_softcap
        # SDPA divides scores by sqrt(N): another scale is reached through the queries.
        self.query_factor = config.attention_scale * N**0.5 if config.attention_scale else 1.0

    def _queries(self, x_BTD: Tensor) -> Tensor:
        """(B, T, H, N)."""
        return self.query(x_BTD).view(*x_BTD.shape[:2], self.heads, self.head_width)  # type: ignore[no-any-return]

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, K, N) each."""
        shape = (*x_BSD.shape[:2], self.kv_heads, self.head_width)
        return self.key(x_BSD).view(shape), self.value(x_BSD).view(shape)

    def _attend(self, q_BTHN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, view: View) -> Tensor:
        """(B, T, D)."""
        B, T, _, _ = q_BTHN.shape
        q_BHTN = (q_BTHN if self.query_factor == 1.0 else q_BTHN * self.query_factor).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if self.softcap:
            o_BHTN = capped_attention(q_BHTN, k_BKSN, v_BKSN, view, self.softcap, dropout)
        elif (
            view.by_blocks and not dropout and not torch.compiler.is_compiling()
        ):  # it would unroll the loop, for minutes
            o_BHTN = block_attention(q_BHTN, k_BKSN, v_BKSN, mask=view.mask, causal=view.causal)
        else:
            o_BHTN = F.scaled_dot_product_attention(
                q_BHTN,
                k_BKSN,
                v_BKSN,
                attn_mask=view.mask,
                dropout_p=dropout,
                is_causal=view.causal and view.mask is None and T > 1,
                enable_gqa=self.kv_heads != self.heads,
            )
        return self.output(o_BHTN.transpose(1, 2).reshape(B, T, self.heads * self.head_width))  # type: ignore[no-any-return]


class Attention(_Attention):
    """Self-attention of one block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config)
        normed = config.qk_norm == "head"
        self.query_norm = build_norm(config, config.head_width) if normed else None
        self.key_norm = build_norm(config, config.head_width) if normed else None
        self.windowed = config.is_windowed(layer)

    def forward(self, x_BTD: Tensor, shared: Shared, layer: int) -> Tensor:
        """(B, T, D) -> (B, T, D); `layer` is this layer's place in the cache."""
        q_BTHN = self._queries(x_BTD)
        k_BTKN, v_BTKN = self.keys_values(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHN, k_BTKN = self.query_norm(q_BTHN), self.key_norm(k_BTKN)
        turn = shared.local_rotation if self.windowed else shared.rotation
        if turn is not None:
            q_BTHN, k_BTKN = rotate(q_BTHN, turn), rotate(k_BTKN, turn)
        k_BKSN, v_BKSN = k_BTKN.transpose(1, 2), v_BTKN.transpose(1, 2)
        if shared.cache is not None:
            k_BKSN, v_BKSN = shared.cache.update(layer, k_BKSN, v_BKSN)
        if shared.prefix_keys is not None and shared.prefix_values is not None:
            k_BKSN, v_BKSN = behind(shared.prefix_keys, k_BKSN), behind(shared.prefix_values, v_BKSN)
        return self._attend(q_BTHN, k_BKSN, v_BKSN, shared.windowed if self.windowed else shared.full)


class CrossAttention(_Attention):
    """Attention of a target to its source."""

    def forward(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        assert shared.source_keys is not None and shared.source_values is not None
        return self._attend(self._queries(x_BTD), shared.source_keys, shared.source_values, shared.source)


def behind(prefix_1KPN: Tensor, x_BKSN: Tensor) -> Tensor:
    """(B, K, P + S, N): keys or values with those of learned positions in front."""
    return torch.cat((prefix_1KPN.to(x_BKSN.dtype).expand(x_BKSN.shape[0], -1, -1, -1), x_BKSN), 2)


def capped_attention(
    q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, view: View, cap: float, dropout: float = 0.0
) -> Tensor:
    """softmax(cap tanh(Q K^T / sqrt(N) / cap) + mask) V, with softmax in fp32: (B, H, T, N)."""
    groups = q_BHTN.shape[1] // k_BKSN.shape[1]
    k_BHSN, v_BHSN = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BKSN, v_BKSN))
    scores = (q_BHTN @ k_BHSN.transpose(2, 3)) * q_BHTN.shape[-1] ** -0.5
    scores = (scores / cap).tanh() * cap
    T, S = scores.shape[-2:]
    if view.mask is not None:
        scores = scores + view.mask
    elif view.causal and T > 1:
        future = torch.ones(T, S, dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(future, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return F.dropout(scores.softmax(-1, dtype=wide).to(v_BHSN.dtype), dropout) @ v_BHSN
