"""GPTQ: each column's rounding error is made up for by the columns not yet rounded (Frantar et al., 2022).

arXiv:2210.17323, algorithm 1. With X the inputs of a matrix W (O, I) on calibration text, H = X^T X, damped, and U the
upper Cholesky factor of H^-1 (H^-1 = U^T U), columns are rounded one after another, and after column i

    e = (W_i - W^_i) / U_ii          W_j -= e U_ij  for all j > i

which is the change of the remaining columns that keeps |X (W - W^)^T|^2 smallest. Within blocks of 128 columns the
updates are made at once, those of later columns together at the block's end, which changes only rounding.

Departs from the paper, as the authors' later code does: columns are taken in falling order of H_ii, so that the inputs
with the largest values, whose error costs most, have all others to make up for it; scales are therefore chosen before
the first column, for groups that stay together in memory. And on its own: these groups' ranges are narrowed
(`ranges.py`); H is damped by a tenth of its mean diagonal, not a hundredth, since a user's calibration text is short;
columns that no text ever excites are rounded to nearest, not set to 0; and a row whose error on the calibration text
would exceed that of rounding to nearest keeps the latter. What each of these is worth was not measured one by one.
The token table and the head are rounded to nearest, as in the paper.

Invariants its tests check: in fp64 the codes are those of the paper's equations written out column by column; no row's
error on the calibration text is above that of rounding to nearest.

Shapes: O outputs, I inputs, G inputs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trivium.models.build import Model
from trivium.progress import SILENT, Progress
from trivium.quantization.calibration import Batch, Visit, output_errors, visit_blocks
from trivium.quantization.packing import Packed, choose_scales, decode, encode, join, refuse_unfit
from trivium.quantization.ranges import narrowed
from trivium.quantization.replacing import put_packed
from trivium.quantization.schemes import Kind, Layout, Scheme, layout

# What is added to the diagonal of H, as a share of its mean (section 3.3, step 3).
DAMPING = 0.1
# Columns whose updates are made at once (section 3.3, step 2).
COLUMNS_PER_BLOCK = 128
# The least and the largest code, as distances from the offset in scales.
CODES: dict[Kind, tuple[int, int]] = {
    "int8": (-127, 127),
    "int8_dynamic": (-127, 127),
    "int4": (-8, 7),
    "int4_asymmetric": (0, 15),
}


def quantize_blocks(model: Model, scheme: Scheme, calibration: Sequence[Batch], *, progress: Progress = SILENT) -> None:
    """Replace the matrices of all blocks by packed ones, in place. UserError for text or weights that are unfit."""

    def treat(visit: Visit) -> None:
        for group in visit.groups():
            names = [name for name in group if not scheme.keeps(f"{visit.name}.{name}")]
            if not names:
                continue
            gram = visit.statistics(group).gram
            weights = [visit.weight(name) for name in names]
            how = layout(scheme, gram.shape[0])
            for weight, name in zip(weights, names, strict=True):
                refuse_unfit(weight, how.kind, f"{visit.name}.{name}")
            # They read the same input: one pass over the columns rounds all their rows.
            together = solve(torch.cat(weights), gram, how)
            for name, packed in zip(names, _split(together, [len(weight) for weight in weights]), strict=True):
                put_packed(visit.block, name, packed)

    visit_blocks(model, calibration, treat, progress=progress)


def solve(weight: Tensor, gram: Tensor, how: Layout) -> Packed:
    """The packed form of `weight` (O, I) whose outputs differ least for inputs with the Gram matrix `gram` (I, I).

    Computed in the type of `gram`, its factors in fp64.
    """
    weight = weight.to(gram.dtype)
    scales, offsets = choose_scales(weight, how.kind, how.group_size)
    nearest = _Codes(encode(weight, how.kind, scales, offsets), scales, offsets)
    if how.group_size:
        ranges = narrowed(weight.float(), gram.float(), how)
        scales, offsets = choose_scales(ranges, how.kind, how.group_size)
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(gram[order][:, order]).to(gram.dtype)
    found = _Codes(_by_columns(weight, order, factor, scales, offsets, how.kind), scales, offsets)
    return _better_rows(weight, gram, found, nearest, how.kind)


def inverse_factor(gram: Tensor) -> Tensor:
    """U (I, I) fp64, upper triangular, with U^T U = (gram + damping)^-1."""
    damped = gram.double()
    diagonal = damped.diagonal().clone()
    unread = diagonal <= 0
    diagonal[unread] = 1.0
    damping = DAMPING * float(diagonal[~unread].mean()) if not bool(unread.all()) else 0.0
    for _ in range(8):  # a Gram matrix summed in fp32 may need more before it is positive definite
        damped = torch.diagonal_scatter(damped, diagonal + damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse_u: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
            return inverse_u
        damping *= 10
    raise AssertionError("a Gram matrix this damped is positive definite")


@dataclass(frozen=True)
class _Codes:
    """A matrix rounded, its codes not yet two to a byte."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None

    def packed(self, kind: Kind) -> Packed:
        return Packed(kind, join(self.codes, kind), self.scales, self.offsets)


def _by_columns(
    weight: Tensor, order: Tensor, factor: Tensor, scales: Tensor, offsets: Tensor | None, kind: Kind
) -> Tensor:
    """Algorithm 1: the codes (O, I) of `weight`, its columns taken in `order`; `factor` is U in that order."""
    outputs, inputs = weight.shape
    left = weight[:, order]
    codes = torch.empty(outputs, inputs, dtype=torch.int8 if kind.startswith("int8") else torch.uint8)
    codes = codes.to(weight.device)
    steps = scales.to(weight.dtype).view(outputs, -1)
    bases = torch.zeros_like(steps) if offsets is None else offsets.to(weight.dtype)
    size = inputs // steps.shape[1]
    low, high = CODES[kind]
    zero = 8 if kind == "int4" else 0
    for start in range(0, inputs, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, inputs)
        errors = torch.empty_like(left[:, start:stop])
        for place, column in enumerate(order[start:stop].tolist(), start):
            step, base = steps[:, column // size], bases[:, column // size]
            ratio = (left[:, place] - base) / torch.where(step == 0, 1.0, step)
            distance = ratio.round_().clamp_(low, high)
            codes[:, column] = (distance + zero).to(codes.dtype)
            error = (left[:, place] - (distance * step + base)) / factor[place, place]
            left[:, place:stop].addr_(error, factor[place, place:stop], alpha=-1)
            errors[:, place - start] = error
        left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return codes


def _better_rows(weight: Tensor, gram: Tensor, found: _Codes, nearest: _Codes, kind: Kind) -> Packed:
    """Of each row the one with the smaller error on the calibration text."""
    ours, theirs = (output_errors(decode(some.packed(kind)).to(gram.dtype) - weight, gram) for some in (found, nearest))
    keep = ours <= theirs

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(keep if a.dim() == 1 else keep[:, None], a, b)

    offsets = None if found.offsets is None or nearest.offsets is None else chosen(found.offsets, nearest.offsets)
    return _Codes(chosen(found.codes, nearest.codes), chosen(found.scales, nearest.scales), offsets).packed(kind)


def _split(packed: Packed, rows: Sequence[int]) -> list[Packed]:
    """The matrices whose rows `packed` holds one after another."""
    split = {name: torch.split(tensor, list(rows)) for name, tensor in packed.tensors().items()}
    return [
        Packed(packed.kind, **{name: parts[number].clone() for name, parts in split.items()})
        for number in range(len(rows))
    ]
