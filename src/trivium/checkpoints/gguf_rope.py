"""Rotary positions in GGUF metadata, in the words of config.json, both ways.

Position interpolation and YaRN are keys of the metadata. Llama 3's rule is not: it is stored as its result, a tensor
`rope_freqs.weight` that says how many times longer each wavelength is made, and is recognised again by computing it.
llama.cpp's YaRN multiplies cosines and sines by 0.1 ln(factor) + 1 itself; `attn_factor` comes on top of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.families.reading import shown
from trivium.models.config import ModelConfig
from trivium.models.rope_scaling import RopeScaling

# Llama 3's rule as published; the file holds its result, whatever the numbers were.
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192
# Factors computed elsewhere in fp32 may differ by this much of themselves.
TOLERANCE = 1e-4
# YaRN's bounds as published.
BETA_FAST, BETA_SLOW = 32.0, 1.0
GEMMA_LOCAL_THETA = 10_000.0


def read_rope(
    name: str, fields: Mapping[str, Any], values: Mapping[str, Any], factors: Sequence[float] | None, origin: str
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of config.json.

    `name` is the architecture, `values` what is known of config.json, `factors` the numbers of `rope_freqs.weight`.
    Raises UserError for what is not supported.
    """

    def number(key: str, default: float) -> Any:
        value = fields.get(f"{name}.rope.{key}", default)
        if type(value) not in (int, float) or not 0 <= value < 1e12:
            raise UserError(f"{origin}: {name}.rope.{key} is {shown(value)}: it must be a number from 0 to 1e12")
        return shortest(value)

    width = values.get("head_dim")
    if number("dimension_count", width if type(width) is int else 0) != width:
        raise UserError(f"{origin}: {name}.rope.dimension_count must be the width of a head, {shown(width)}")
    rope: dict[str, Any] = {"rope_theta": float(number("freq_base", 10_000.0)), "rope_scaling": None}
    if name == "gemma3":
        rope["rope_local_base_freq"] = float(number("freq_base_swa", GEMMA_LOCAL_THETA))
    factor = float(number("scaling.factor", number("scale_linear", 1.0))) or 1.0
    kind = fields.get(f"{name}.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{origin}: {name}.rope.scaling.type is {shown(kind)}: none, linear and yarn are supported")
    original = number("scaling.original_context_length", 0)
    if kind == "linear" and factor != 1.0:
        rope["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        if number("scaling.yarn_ext_factor", 1.0) != 1.0 or number("scaling.yarn_log_multiplier", 0.0) != 0.0:
            raise UserError(f"{origin}: yarn_ext_factor and yarn_log_multiplier are not supported")
        extra = float(number("scaling.attn_factor", 1.0)) * float(number("scaling.yarn_attn_factor", 1.0))
        rope["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or values.get("max_position_embeddings"),
            "beta_fast": float(number("scaling.yarn_beta_fast", BETA_FAST)),
            "beta_slow": float(number("scaling.yarn_beta_slow", BETA_SLOW)),
            **({} if extra == 1.0 else {"attention_factor": float(f"{extra * (0.1 * math.log(factor) + 1.0):.7g}")}),
        }
    if factors is not None and any(value != 1.0 for value in factors):
        if rope["rope_scaling"] is not None:
            raise UserError(f"{origin}: rope_freqs.weight and {name}.rope.scaling cannot both be followed")
        rope["rope_scaling"] = _llama3(
            factors, rope["rope_theta"], original or ORIGINAL, f"{origin}: rope_freqs.weight"
        )
    return rope


def write_rope(name: str, config: ModelConfig) -> dict[str, Any]:
    """The metadata; UserError for a method that llama.cpp has not."""
    fields: dict[str, Any] = {"freq_base": config.rope_theta, "dimension_count": config.rope_width}
    if name == "gemma3":
        fields["freq_base_swa"] = config.local_rope_theta or config.rope_theta
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling.method not in ("linear", "yarn", "llama3") or (scaling.method == "llama3" and name != "llama"):
            raise UserError(f"rope_scaling.method must not be {scaling.method}")
        if scaling.method != "llama3":
            fields |= {"scaling.type": scaling.method, "scaling.factor": scaling.factor}
        if scaling.method != "linear":
            fields["scaling.original_context_length"] = scaling.original_max_positions
        if (scaling.beta_fast, scaling.beta_slow) != (BETA_FAST, BETA_SLOW):
            raise UserError(
                f"rope_scaling.beta_fast and beta_slow must be {BETA_FAST:g} and {BETA_SLOW:g}, which llama.cpp takes "
                "whatever the file says"
            )
        if scaling.attention_factor is not None:
            fields["scaling.attn_factor"] = scaling.attention_factor / (0.1 * math.log(scaling.factor) + 1.0)
    return {f"{name}.rope.{key}": value for key, value in fields.items()}


def rope_factors(width: int, theta: float, scaling: RopeScaling | None) -> list[float] | None:
    """The numbers of `rope_freqs.weight`, (N / 2), for heads of `width` N; None where it is not needed."""
    if scaling is None or scaling.method != "llama3":
        return None
    from trivium.models.positions import rope_frequencies

    plain, _ = rope_frequencies(width, theta, None, 0, "cpu")
    scaled, _ = rope_frequencies(width, theta, scaling, 0, "cpu")
    return (plain / scaled).tolist()


def shortest(value: Any) -> Any:
    """A float as the shortest decimal that is the same float32; anything else as it is."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _llama3(factors: Sequence[float], theta: float, original: Any, origin: str) -> dict[str, Any]:
    """The settings of Llama 3's rule that give these factors."""
    told = {
        "rope_type": "llama3",
        "factor": float(f"{max(factors):.5g}"),
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }
    fields = {"method": "llama3", "factor": told["factor"], "original_max_positions": original}
    scaling = build_settings(
        RopeScaling, {**fields, "low_frequency_factor": LOW, "high_frequency_factor": HIGH}, origin
    )
    if theta <= 1.0:
        raise UserError(f"{origin}: rope.freq_base must be above 1")
    expected = rope_factors(2 * len(factors), theta, scaling) or []
    if any(abs(one - two) > TOLERANCE * two for one, two in zip(factors, expected, strict=True)):
        raise UserError(f"{origin} is not what Llama 3's rule gives; no other rule is supported")
    return told
