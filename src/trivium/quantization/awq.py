"""AWQ: inputs that matter more get finer steps, by scales that the layer before takes back (Lin et al., 2023).

arXiv:2306.00978, section 3. A matrix W that reads x computes the same as W diag(s) that reads x / s, but rounding hurts
the columns of W diag(s) with a large s less. With m the mean of |x|, s = m^a, and a is searched from 0 to 1 for the
smallest error of the outputs (equations 4 and 5). The division is folded into what wrote x, so that none is left:

    query, key, value and cross.query   the norm before them          (where norms come before: pre-norm, sandwich)
    gate, up                            the norm before them          (likewise)
    attention.output, cross.output      the rows of value             (query heads that share a value share its s)
    down                                the rows of up                (gated, or with a relu between)

Elsewhere (after a post-norm, whose output is also the residual stream; behind gelu or silu without a gate; the source's
key and value) no exact fold exists and s stays 1. Then the ranges of groups are narrowed (`ranges.py`). The token table
and the head are rounded to nearest.

Departs from the paper: outputs are compared matrix by matrix through the Gram matrix of the inputs, so that all of the
text counts and none of it is kept; and a norm's weight is divided in its own type first, s being what it then really
was divided by, so that the fold is exact in half precision too. Ranges of query and key are narrowed like all others.

Invariants its tests check: folding alone leaves the model's function as it was, for every kind of block; the error on
the calibration text is never above that of rounding to nearest.

Shapes: O outputs, I inputs, G inputs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trivium.models.build import Model
from trivium.models.layers import ACTIVATIONS, LayerNorm, RMSNorm
from trivium.models.transformer import Block
from trivium.progress import SILENT, Progress
from trivium.quantization.calibration import Batch, Statistics, Visit, output_errors, visit_blocks
from trivium.quantization.packing import pack, refuse_unfit, unpack
from trivium.quantization.ranges import narrowed
from trivium.quantization.replacing import put_packed
from trivium.quantization.schemes import Layout, Scheme, layout

# Exponents tried.
EXPONENTS = tuple(step / 20 for step in range(20))
Group = tuple[str, ...]
Weights = dict[str, Tensor]
"""The matrices of a block by name, fp32: in half precision a product with s would be rounded once more."""


def quantize_blocks(model: Model, scheme: Scheme, calibration: Sequence[Batch], *, progress: Progress = SILENT) -> None:
    """Replace the matrices of all blocks by packed ones, in place. UserError for text or weights that are unfit."""

    def treat(visit: Visit) -> None:
        weights = {name: visit.weight(name).float() for group in visit.groups() for name in group}
        kept = {name for name in weights if scheme.keeps(f"{visit.name}.{name}")}
        for name, weight in weights.items():
            refuse_unfit(weight, layout(scheme, weight.shape[1]).kind, f"{visit.name}.{name}")
        # Scales that are folded away change no input, so all statistics are taken first.
        statistics = {group: visit.statistics(group) for group in visit.groups()}
        for group, seen in statistics.items():
            writer = writer_of(visit.block, group)
            if writer is None or kept.intersection((*group, writer)):
                continue
            scale = search_scale(visit.block, group, weights, seen, layout(scheme, len(seen.magnitude)))
            if scale is not None:
                scale = fold(visit.block, group, weights, scale)
                statistics[group] = Statistics(seen.gram / scale / scale[:, None], seen.magnitude / scale, seen.count)
        for group, seen in statistics.items():
            how = layout(scheme, len(seen.magnitude))
            for name in (name for name in group if name not in kept):
                weight = weights.pop(name)
                if how.group_size:
                    weight = narrowed(weight, seen.gram, how)
                put_packed(visit.block, name, pack(weight, how, f"{visit.name}.{name}"))

    visit_blocks(model, calibration, treat, progress=progress)


def writer_of(block: Block, group: Group) -> str | None:
    """The module of the block that writes the input of `group` and can take a division back; None: there is none."""
    first = group[0]
    norms = {"attention.query": "attention_norm", "cross.query": "cross_norm"}
    norms |= {"mlp.gate": "mlp_norm", "mlp.up": "mlp_norm"}
    if first in norms:
        return None if block.post_norm or getattr(block, norms[first]) is None else norms[first]
    if first in ("attention.output", "cross.output"):
        return first.replace("output", "value")
    passes = block.mlp.gate is not None or block.mlp.activation is ACTIVATIONS["relu"]
    return "mlp.up" if first == "mlp.down" and passes else None


def search_scale(block: Block, group: Group, weights: Weights, seen: Statistics, how: Layout) -> Tensor | None:
    """s (I,) for the input of `group`, the best of `EXPONENTS`; None for 1."""
    magnitude = _by_value(block, group, seen.magnitude).mean(1, keepdim=True)
    magnitude = magnitude.expand_as(_by_value(block, group, seen.magnitude)).flatten()
    magnitude = magnitude.clamp(min=max(1e-4 * float(magnitude.mean()), 1e-30))
    weight = torch.cat([weights[name] for name in group])
    best, least = None, torch.inf
    for exponent in EXPONENTS:
        scale = magnitude**exponent
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = float(output_errors(unpack(pack(weight * scale, how)) / scale - weight, seen.gram).sum())
        if error < least:
            best, least = scale if exponent else None, error
    return best


def fold(block: Block, group: Group, weights: Weights, scale: Tensor) -> Tensor:
    """Divide the input of `group` by `scale` (I,) where it is written and multiply its matrices; s as it really was."""
    writer = writer_of(block, group)
    assert writer is not None
    if writer in weights:
        rows = _by_value(block, group, scale)[:, 0].flatten()
        weights[writer] /= rows[:, None]
        bias = block.get_submodule(writer).bias
        if isinstance(bias, Tensor):
            bias.data = (bias.data / rows).to(bias.dtype)
    else:
        scale = _divide_norm(block.get_submodule(writer), scale)
    for name in group:
        weights[name] *= scale
    return scale


def _by_value(block: Block, group: Group, values: Tensor) -> Tensor:
    """`values` (I,), one for each input of `group`, as (A, B, C): all B of an [a, :, c] are written by one row.

    The query heads of a group share their value head, so B is H / K for what attention writes, and 1 elsewhere.
    """
    if not group[0].endswith(".output"):
        return values.view(1, 1, -1)
    attention = block.cross if group[0].startswith("cross") else block.attention
    assert attention is not None
    return values.view(attention.kv_heads, -1, attention.head_width)


def _divide_norm(norm: nn.Module, scale: Tensor) -> Tensor:
    """Divide what `norm` gives; the divisor as it came to be in the norm's own type, (D,) fp32."""
    assert isinstance(norm, RMSNorm | LayerNorm)
    one = 1.0 if isinstance(norm, RMSNorm) and norm.around_one else 0.0
    before = norm.weight.data.float() + one
    norm.weight.data = (before / scale - one).to(norm.weight.dtype)
    after = norm.weight.data.float() + one
    applied = torch.where((before == 0) | (after == 0), scale, before / after)
    if isinstance(norm, LayerNorm) and norm.bias is not None:
        norm.bias.data = (norm.bias.data.float() / applied).to(norm.bias.dtype)
    return applied
