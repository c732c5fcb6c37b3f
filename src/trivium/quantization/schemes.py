"""Which matrices of a model are stored how, and what that takes, without torch.

    int8              codes -127..127, one fp32 scale per output: w = code * scale
    int8_dynamic      the same codes; activations are rounded to int8, in groups of 64, while the model runs
    int4              groups of inputs with one fp16 scale: w = (code - 8) * scale
    int4_asymmetric   and one fp16 offset: w = code * scale + offset
    nf4               16 levels at the quantiles of a normal distribution times a scale per block (QLoRA's NormalFloat;
                      Dettmers et al., 2023), these scales themselves stored in 8 bits (double quantization)
    fp16, bf16        no codes: all numbers in 16 bits

Two rules decide for each matrix (`layout`). The token table and the head's projection are int8 where the rest has four
bits: errors there hit every logit directly (llama.cpp's files do the same). A matrix whose rows are not made of whole
groups takes the next smaller group that divides them (128, 64, 32), and where none does, int8.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

from pydantic import field_validator, model_validator

from trivium.config import Settings, build_settings
from trivium.errors import UserError, nearest

Format = Literal["fp16", "bf16", "int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"]
Kind = Literal["int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"]
Method = Literal["nearest", "gptq", "awq"]

FORMATS: tuple[Format, ...] = get_args(Format)
DENSE: tuple[Format, ...] = ("fp16", "bf16")
GROUPED: tuple[Format, ...] = ("int4", "int4_asymmetric", "nf4")
CALIBRATED: tuple[Format, ...] = ("int8", "int8_dynamic", "int4", "int4_asymmetric")
GROUP_SIZES = (128, 64, 32)
USUAL_GROUP_SIZE: dict[str, int] = {"int4": 32, "int4_asymmetric": 32, "nf4": 64}
TABLES = ("embedding", "head.output")
"""Modules with one row per token."""
SCALES_PER_SUPERBLOCK = 256
"""Scales of nf4 that share one scale of their own."""


class Scheme(Settings):
    """How a model is quantized."""

    format: Format
    """How matrices are stored: fp16, bf16, int8, int8_dynamic, int4, int4_asymmetric or nf4."""
    group_size: int = 0
    """Inputs that share a scale, in 4-bit formats: 32, 64 or 128. [0: the usual, 32, of nf4 64; 0 for the others]"""
    double_quantization: bool = False
    """Whether the scales of nf4 are themselves stored in 8 bits. [nf4: true]"""
    method: Method = "nearest"
    """How codes are found: nearest (rounding), gptq or awq (both need calibration text)."""
    keep: tuple[str, ...] = ()
    """Modules left as they are, by name or pattern: `head.output`, `*.down`."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """What a format has when nothing is said."""
        if not isinstance(values, dict):
            return values
        format = values.get("format")
        values = {"double_quantization": format == "nf4", **values}
        if not values.get("group_size"):
            values["group_size"] = USUAL_GROUP_SIZE.get(str(format), 0)
        return values

    @field_validator("group_size")
    @classmethod
    def _known_size(cls, value: int) -> int:
        if value not in (0, *GROUP_SIZES):
            raise ValueError(f"must be one of {', '.join(map(str, GROUP_SIZES[::-1]))}")
        return value

    @model_validator(mode="after")
    def _fits_the_format(self) -> Scheme:
        if self.group_size and self.format not in GROUPED:
            raise ValueError(f"group_size is for {', '.join(GROUPED)}; {self.format} has no groups")
        if self.double_quantization and self.format != "nf4":
            raise ValueError("double_quantization is for nf4 alone")
        if self.method != "nearest" and self.format not in CALIBRATED:
            raise ValueError(f"method {self.method} is for {', '.join(CALIBRATED)}; {self.format} is rounded")
        return self

    @property
    def packs(self) -> bool:
        """Whether matrices become codes; otherwise the model is only converted."""
        return self.format not in DENSE

    def keeps(self, name: str) -> bool:
        """Whether the module `name` is left as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.keep)


class Layout(NamedTuple):
    """How one matrix is stored."""

    kind: Kind
    group_size: int
    """Inputs per scale; 0: one scale per output."""
    double_quantization: bool


def scheme_for(name: str | Scheme, **changes: Any) -> Scheme:
    """The scheme of a format's name (a scheme is itself); UserError that lists what there is.

    `changes` are other fields: `scheme_for("int4", group_size=64)`.
    """
    if isinstance(name, Scheme):
        return name if not changes else build_settings(Scheme, {**name.model_dump(), **changes}, "quantize")
    if name not in FORMATS:
        near = nearest(str(name), FORMATS)
        hint = f"did you mean {near}?" if near else f"use one of {', '.join(FORMATS)}"
        raise UserError(f"there is no format {str(name)!r} to quantize to; {hint}")
    return build_settings(Scheme, {"format": name, **changes}, "quantize")


def refuse_packed(scheme: Scheme | None, what: str, name: str = "the model") -> None:
    """UserError where packed weights are asked for what only dense ones can; `what` says it ("trained", "resized")."""
    if scheme is not None and scheme.packs:
        raise UserError(f"{name} is stored as {scheme.format}, which cannot be {what}: take the original model")


def layout(scheme: Scheme, inputs: int, name: str = "") -> Layout:
    """How the matrix of the module `name`, with rows of `inputs` numbers, is stored by a scheme that packs."""
    if not scheme.packs:
        raise ValueError(f"{scheme.format} packs nothing")
    eight_bits: Kind = "int8_dynamic" if scheme.format == "int8_dynamic" else "int8"
    sizes = [size for size in GROUP_SIZES if size <= scheme.group_size and inputs % size == 0]
    if scheme.format not in GROUPED or name in TABLES or not sizes:
        # A table is looked up and multiplied by all of the vocabulary: its activations stay as they are.
        return Layout("int8" if name in TABLES else eight_bits, 0, False)
    return Layout(scheme.format, sizes[0], scheme.double_quantization)  # type: ignore[arg-type]


def packed_bytes(scheme: Scheme, outputs: int, inputs: int, name: str = "") -> int:
    """Bytes of a matrix (outputs, inputs) of the module `name`, scales included."""
    numbers = outputs * inputs
    if not scheme.packs:
        return 2 * numbers
    kind, group, double = layout(scheme, inputs, name)
    if not group:
        return numbers + 4 * outputs
    groups = numbers // group
    if kind != "nf4":
        return numbers // 2 + groups * (4 if kind == "int4_asymmetric" else 2)
    superblocks = -(-groups // SCALES_PER_SUPERBLOCK)
    return numbers // 2 + (groups + 4 * superblocks + 4 if double else 4 * groups)
