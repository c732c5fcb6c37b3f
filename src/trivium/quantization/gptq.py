"""GPTQ: each column's rounding error is made up for by the columns not yet rounded (Frantar et al., 2022).

arXiv:2210.17323, algorithm 1. With X the inputs of a matrix W (O, I) on calibration text, H = X^T X, damped, and U the
upper Cholesky factor of H^-1 (H^-1 = U^T U), columns are rounded from first to last, and after column i

    e = (W_i - W^_i) / U_ii          W_j -= e U_ij  for all j > i

which is the change of the remaining columns that keeps |X (W - W^)^T|^2 smallest. A group's scale is chosen when the
rounding comes to it, for the columns as they are then. Within blocks of 128 columns the updates are made at once, those
of later columns together at the block's end, which changes only rounding.

Departs from the paper: columns that no text ever excites are rounded to nearest (not set to 0); and a row whose error
on the calibration text would be larger than that of rounding to nearest keeps the latter, so that no row is ever worse.
The token table and the head are left to rounding to nearest, as in the paper.

Invariants its tests check: in fp64 the codes are those of the paper's equations written out column by column; the error
on the calibration text is never above that of rounding to nearest.

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
from trivium.quantization.replacing import put_packed
from trivium.quantization.schemes import Kind, Layout, Scheme, layout

# What is added to the diagonal of H, as a share of its mean (section 3.3, step 3).
DAMPING = 0.01
# Columns whose updates are made at once (section 3.3, step 2); a multiple of every group size.
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
    original = weight.to(gram.dtype)
    nearest = _nearest(original, how)
    found = _by_columns(original, inverse_factor(gram).to(gram.dtype), how)
    return _better_rows(original, gram, found, nearest, how.kind)


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


def _nearest(weight: Tensor, how: Layout) -> _Codes:
    scales, offsets = choose_scales(weight, how.kind, how.group_size)
    return _Codes(encode(weight, how.kind, scales, offsets), scales, offsets)


def _by_columns(weight: Tensor, factor: Tensor, how: Layout) -> _Codes:
    """Algorithm 1: `weight` rounded column by column with the help of U, `factor`."""
    weight = weight.clone()
    inputs = weight.shape[1]
    group = how.group_size or inputs
    distances = torch.empty_like(weight)
    scales: list[Tensor] = []
    offsets: list[Tensor] = []
    if not how.group_size:
        row_scales, _ = choose_scales(weight, how.kind, how.group_size)
        scales.append(row_scales)
    for start in range(0, inputs, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, inputs)
        errors = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            if how.group_size and column % group == 0:
                group_scales, group_offsets = choose_scales(weight[:, column : column + group], how.kind, group)
                scales.append(group_scales)
                offsets += [] if group_offsets is None else [group_offsets]
            offset = offsets[-1].flatten().to(weight.dtype) if offsets else 0.0
            scale = scales[-1].flatten().to(weight.dtype)
            low, high = CODES[how.kind]
            ratio = (weight[:, column] - offset) / torch.where(scale == 0, 1.0, scale)
            distance = ratio.round_().clamp_(low, high)
            distances[:, column] = distance
            error = (weight[:, column] - (distance * scale + offset)) / factor[column, column]
            weight[:, column:stop].addr_(error, factor[column, column:stop], alpha=-1)
            errors[:, column - start] = error
        weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    codes = (
        distances.to(torch.int8) if how.kind.startswith("int8") else (distances - CODES[how.kind][0]).to(torch.uint8)
    )
    return _Codes(
        codes, torch.cat(scales, 1) if how.group_size else scales[0], torch.cat(offsets, 1) if offsets else None
    )


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
