"""A matrix as codes and scales, and back: the arithmetic of every format.

Layouts, for a matrix (O, I) = (outputs, inputs) whose groups of G inputs lie along a row:

    int8, int8_dynamic  packed int8 (O, I); scales fp32 (O,)
    int4                packed uint8 (O, I/2); scales fp16 (O, I/G)
    int4_asymmetric     the same, and offsets fp16 (O, I/G)
    nf4                 packed uint8 (O, I/2); scales fp32 (O, I/G), or with double quantization scales int8 (O, I/G),
                        steps fp32 (one per 256 scales) and offsets fp32 (1,), their mean

Two codes share a byte: byte j of 16 holds number j of a block of 32 in its low half and number j + 16 in its high half,
as in ggml's Q4_0 and Q4_1, whose blocks are exactly those of int4 and int4_asymmetric with G = 32.

Scales are rounded first, away from zero, and codes are made for the rounded scale; everything is computed in fp32.
Invariant (tests, R15): |w - w^| <= scale / 2 + 1 ulp for every element, whatever the numbers; of nf4 half the gap
between neighbouring levels takes the place of 1/2. Weights that are no finite numbers, or that a format cannot reach,
are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.quantization import nf4
from trivium.quantization.schemes import Kind, Layout, Scheme, layout, scheme_for

BLOCK = 32
"""Numbers whose codes are interleaved in 16 bytes."""
LARGEST_HALF = 65504.0
# The largest magnitudes; in fp32 a scale's rounding must not reach infinity.
LARGEST: dict[str, float] = {"int8": 1e38, "int8_dynamic": 1e38, "nf4": 1e38, "fp16": LARGEST_HALF, "bf16": 3.3e38}
LARGEST |= {"int4": 7.5 * LARGEST_HALF, "int4_asymmetric": LARGEST_HALF}
SMALLEST = 2.0**-149
"""Above 0 in fp32."""
AT_A_TIME = 1 << 18
"""Numbers of a matrix worked on at a time: beside codes and matrix only so many are in memory."""


@dataclass(frozen=True)
class Packed:
    """One matrix in few bits."""

    kind: Kind
    packed: Tensor
    """The codes: int8 (O, I) or uint8 (O, I/2)."""
    scales: Tensor
    """(O,) or (O, I/G)."""
    offsets: Tensor | None = None
    """int4_asymmetric: (O, I/G) fp16; nf4 in double quantization: the mean of its scales, (1,) fp32."""
    steps: Tensor | None = None
    """nf4 in double quantization: fp32 (S,), what one code of 256 scales stands for."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        outputs, columns = self.packed.shape
        return outputs, columns if self.kind.startswith("int8") else 2 * columns

    @property
    def group_size(self) -> int:
        """Inputs per scale; 0: one scale per output."""
        return 0 if self.scales.dim() == 1 else self.shape[1] // self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        """Codes, scales and offsets."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, those it has."""
        every = {"packed": self.packed, "scales": self.scales, "offsets": self.offsets, "steps": self.steps}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def rows(self, which: slice | Tensor) -> Packed:
        """Some of its rows; of scales in double quantization, their fp32 numbers."""
        offsets = self.offsets[which] if self.kind == "int4_asymmetric" and self.offsets is not None else None
        return Packed(self.kind, self.packed[which], full_scales(self)[which], offsets)


def pack(weight: Tensor, scheme: Scheme | Layout | str, name: str = "weight") -> Packed:
    """A matrix (O, I) in codes, each rounded to nearest. `name` is its module's or what a refusal calls it.

    Raises UserError for a matrix with NaN, infinite or too large numbers.
    """
    chosen = scheme if isinstance(scheme, Layout) else layout(scheme_for(scheme), weight.shape[1], name)
    refuse_unfit(weight, chosen.kind, name)
    scales, offsets = choose_scales(weight, chosen.kind, chosen.group_size)
    if chosen.kind == "nf4" and chosen.double_quantization:
        codes, steps, mean = nf4.compress_scales(scales)
        compressed = Packed("nf4", weight.new_empty(0, 0, dtype=torch.uint8), codes, mean, steps)
        return replace(compressed, packed=join(encode(weight, "nf4", nf4.expand_scales(codes, steps, mean)), "nf4"))
    return Packed(chosen.kind, join(encode(weight, chosen.kind, scales, offsets), chosen.kind), scales, offsets)


def unpack(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (O, I) that the codes stand for, computed in fp32."""
    outputs, inputs = packed.shape
    weight = torch.empty(outputs, inputs, dtype=dtype, device=packed.packed.device)
    expanded = packed.rows(slice(None))
    step = _rows_at_a_time(weight)
    for start in range(0, outputs, step):
        weight[start : start + step] = decode(expanded.rows(slice(start, start + step)))
    return weight


def decode(packed: Packed) -> Tensor:
    """The same in one piece, fp32."""
    codes = separate(packed.packed, packed.kind)
    scales = full_scales(packed)
    if not packed.group_size:
        return codes.float() * scales[:, None]
    grouped = codes.view(*scales.shape, packed.group_size)
    if packed.kind == "nf4":
        values = nf4.level_table(codes.device).take(grouped.long())
    else:
        values = grouped.float() - (8 if packed.kind == "int4" else 0)
    values *= scales.float()[..., None]
    if packed.kind == "int4_asymmetric" and packed.offsets is not None:
        values += packed.offsets.float()[..., None]
    return values.flatten(1)


def refuse_unfit(weight: Tensor, kind: str, name: str) -> None:
    """Refuse numbers that are not finite, or beyond what `kind` can hold."""
    low, high = torch.aminmax(weight) if weight.numel() else (weight.new_zeros(()), weight.new_zeros(()))
    largest = max(-float(low), float(high))
    if not (largest < float("inf")):
        raise UserError(f"{name} holds {'NaN' if largest != largest else 'infinite numbers'}: it cannot be quantized")
    if largest > LARGEST[kind]:
        raise UserError(f"{name} holds {largest:g}, and {kind} ends at {LARGEST[kind]:g}: use bf16 or int8")


def choose_scales(weight: Tensor, kind: Kind, group_size: int) -> tuple[Tensor, Tensor | None]:
    """The scales (and offsets) of a matrix (O, I), in the type they are stored in, so that no code is out of range.

    The bound holds with them: they are at least so large that the extremes of each row or group are within half a
    scale of the outermost code.
    """
    parts = [_scales(rows.float(), kind, group_size) for rows in torch.split(weight, _rows_at_a_time(weight))]
    offsets = [offset for _, offset in parts if offset is not None]
    return torch.cat([scale for scale, _ in parts]), torch.cat(offsets) if offsets else None


def _scales(rows: Tensor, kind: Kind, group_size: int) -> tuple[Tensor, Tensor | None]:
    """The same for a few rows, fp32."""
    if not group_size:
        return _at_least(rows.abs().amax(1), 127), None
    low, high = torch.aminmax(rows.view(len(rows), -1, group_size), dim=-1)
    if kind == "nf4":
        return torch.maximum(-low, high), None
    if kind == "int4_asymmetric":
        offsets = -_half_up(-low)
        reach = high - offsets.float()
        return _half_up(_share(reach, 15)), offsets
    # Codes are -8..7, so the larger side gets the 8 by the sign of the scale; the other may reach half beyond its 7.
    larger, smaller = torch.maximum(-low, high), torch.minimum(-low, high)
    size = _half_up(torch.maximum(_share(larger, 8), _share(smaller, 7.5)))
    return torch.where(high > -low, -size, size), None


def encode(weight: Tensor, kind: Kind, scales: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The nearest code of each number (O, I), for scales as `choose_scales` gives them; not yet two to a byte."""
    codes = torch.empty(weight.shape, dtype=torch.uint8 if scales.dim() > 1 else torch.int8, device=weight.device)
    step = _rows_at_a_time(weight)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        numbers = weight[rows].float()
        if scales.dim() == 1:
            codes[rows] = _ratios(numbers, scales[rows, None]).round_().clamp_(-127, 127)
            continue
        numbers = numbers.view(len(numbers), scales.shape[1], -1)
        if offsets is not None:
            numbers = numbers - offsets[rows].float()[..., None]
        ratios = _ratios(numbers, scales[rows].float()[..., None])
        if kind == "nf4":
            found = nf4.nearest_codes(ratios)
        else:
            found = (ratios.round_() + (8 if kind == "int4" else 0)).clamp_(0, 15)
        codes[rows] = found.flatten(1)
    return codes


def join(codes: Tensor, kind: Kind) -> Tensor:
    """Codes (O, I) as they are stored: of 4 bits two to a byte."""
    if kind.startswith("int8"):
        return codes
    halves = codes.view(len(codes), -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)


def separate(packed: Tensor, kind: Kind) -> Tensor:
    """The inverse: one code per number."""
    if kind.startswith("int8"):
        return packed
    blocks = packed.view(len(packed), -1, BLOCK // 2)
    return torch.stack((blocks & 15, blocks >> 4), 2).flatten(1)


def full_scales(packed: Packed) -> Tensor:
    """The scales as numbers: those of double quantization expanded."""
    if packed.steps is None or packed.offsets is None:
        return packed.scales
    return nf4.expand_scales(packed.scales, packed.steps, packed.offsets)


def _rows_at_a_time(weight: Tensor) -> int:
    return max(1, AT_A_TIME // max(1, weight.shape[1]))


def _ratios(numbers: Tensor, scales: Tensor) -> Tensor:
    """numbers / scales, and 0 where a scale is 0 (all numbers are, then)."""
    return numbers / torch.where(scales == 0, 1.0, scales)


def _share(reach: Tensor, steps: float) -> Tensor:
    """reach / steps, and not 0 where it is so small that fp32 has no such number."""
    return torch.where(reach > 0, (reach / steps).clamp(min=SMALLEST), 0.0)


def _at_least(extremes: Tensor, steps: int) -> Tensor:
    """The smallest fp32 scales of which `steps` reach the extremes."""
    scales = extremes / steps
    short = scales * steps < extremes
    return torch.where(short, torch.nextafter(scales, torch.full_like(scales, torch.inf)), scales)


def _half_up(numbers: Tensor) -> Tensor:
    """fp16 numbers, none below the given ones."""
    halves = numbers.to(torch.float16)
    return torch.where(halves.float() < numbers, torch.nextafter(halves, torch.full_like(halves, torch.inf)), halves)
