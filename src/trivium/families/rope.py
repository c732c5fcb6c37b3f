"""Rotary positions in config.json: `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before.

Both forms are read (where a file has both, `rope_scaling` counts, as there) and both are written, so that either
version opens the file. A key that is not known is refused: it may change what is computed.

`ntk` is a name of ours for a changed base, which config.json says through the base itself; writing it is refused with
the base that computes the same.

Invariant its test checks: what is read is what transformers' own config class holds, for each method and both forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.reading import shown, stated
from trivium.models.config import ModelConfig

DEFAULT_THETA = 10_000.0
LARGEST_FACTOR = 1e9
# Gemma 3: layers that see everything, and windowed ones.
GLOBAL_THETA = 1_000_000.0
LAYER_TYPES = ("full_attention", "sliding_attention")

METHODS = ("default", "linear", "dynamic", "yarn", "llama3")
# Their key: our field of `RopeScaling`.
FIELDS_OF_METHOD = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
KNOWN_KEYS = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mscale", "mscale_all_dim"}.union(
        *FIELDS_OF_METHOD.values()
    )
)


def read_rope(values: Mapping[str, Any], origin: str, *, max_positions: int) -> dict[str, Any]:
    """Our fields `rope_theta` and `rope_scaling` (null where there is none).

    `max_positions`: what the family means where the file does not say.
    """
    fields = read_partial_rope(values, origin, max_positions=max_positions)
    if fields["rope_share"] != 1.0:
        raise UserError(f"{origin}: partial_rotary_factor is {shown(fields['rope_share'])}: only 1.0 is supported here")
    return fields


def read_partial_rope(
    values: Mapping[str, Any],
    origin: str,
    *,
    max_positions: int,
    theta_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
    share: float = 1.0,
) -> dict[str, Any]:
    """The same and `rope_share`, for families that may rotate a part of each head.

    `theta_key`, `share_key`: their names outside of `rope_parameters`; `share`: what a file without the key means.
    """
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = _object(stated(values, key, {}), f"{origin}: {key}")
    return {
        "rope_theta": stated(rope, "rope_theta", stated(values, theta_key, DEFAULT_THETA)),
        "rope_share": stated(rope, "partial_rotary_factor", stated(values, share_key, share)),
        "rope_scaling": _read_scaling(rope, f"{origin}: {key}", values, max_positions),
    }


def read_rope_by_layer(values: Mapping[str, Any], origin: str, *, max_positions: int) -> dict[str, Any]:
    """The same and `local_rope_theta`, for a family whose windowed layers have a base of their own."""
    where = f"{origin}: rope_parameters"
    rope = stated(values, "rope_parameters", {})
    if not isinstance(rope, dict) or not set(rope) <= set(LAYER_TYPES):
        raise UserError(f"{where} is {shown(rope)}: it must have the keys {' and '.join(LAYER_TYPES)}")
    full, local = (_object(stated(rope, name, {}), f"{where}.{name}") for name in LAYER_TYPES)
    full = full | _object(stated(values, "rope_scaling", {}), f"{origin}: rope_scaling")
    for part in (full, local):
        if stated(part, "partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{where}: partial_rotary_factor must be 1.0")
    if _read_scaling(local, f"{where}.{LAYER_TYPES[1]}", values, max_positions) is not None:
        raise UserError(f"{where}.{LAYER_TYPES[1]} is {shown(local)}: windowed layers cannot be scaled")
    # transformers looks for `truncate` one level above its place, so that it has no effect here.
    full.pop("truncate", None)
    return {
        "rope_theta": stated(full, "rope_theta", stated(values, "rope_theta", GLOBAL_THETA)),
        "local_rope_theta": stated(local, "rope_theta", stated(values, "rope_local_base_freq", DEFAULT_THETA)),
        "rope_scaling": _read_scaling(full, f"{where}.{LAYER_TYPES[0]}", values, max_positions),
    }


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_rope`."""
    scaling = _write_scaling(config)
    old = {"rope_scaling": scaling} if config.rope_scaling is not None else {}
    return {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        **old,
    }


def write_partial_rope(config: ModelConfig, *, theta_key: str, share_key: str) -> dict[str, Any]:
    """The inverse of `read_partial_rope`."""
    written = write_rope(config)
    for name in written.keys() & {"rope_parameters", "rope_scaling"}:
        written[name]["partial_rotary_factor"] = config.rope_share
    return {**written, theta_key: config.rope_theta, share_key: config.rope_share}


def write_rope_by_layer(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_rope_by_layer`."""
    written = write_rope(config)
    local = config.local_rope_theta or config.rope_theta
    layers = (written["rope_parameters"], {"rope_theta": local, "rope_type": "default"})
    return {**written, "rope_local_base_freq": local, "rope_parameters": dict(zip(LAYER_TYPES, layers, strict=True))}


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object (is {shown(value)})")
    unknown = sorted(key for key in value if key not in KNOWN_KEYS and value[key] is not None)
    if unknown:
        raise UserError(f"{where}: {shown(unknown[0])} is not supported")
    return value


def _read_scaling(
    rope: Mapping[str, Any], where: str, values: Mapping[str, Any], max_positions: int
) -> dict[str, Any] | None:
    """The fields of our `RopeScaling`; None for plain rotary positions."""
    method = stated(rope, "rope_type", stated(rope, "type", "default"))
    if method not in METHODS:
        raise UserError(f"{where} of type {shown(method)}: supported are {', '.join(METHODS)}")
    if method == "default":
        return None
    found = {ours: rope[key] for key, ours in FIELDS_OF_METHOD[method].items() if rope.get(key) is not None}
    length = stated(values, "max_position_embeddings", max_positions)
    if method == "dynamic":
        found["original_max_positions"] = length
    elif method in ("yarn", "llama3"):
        # A length outside of the object goes before the one inside it.
        original = stated(values, "original_max_position_embeddings", found.get("original_max_positions", length))
        found["original_max_positions"] = original
    if method == "yarn" and "attention_factor" not in found:
        found |= _yarn_attention_factor(rope, where)
    return {"method": method, **found}


def _yarn_attention_factor(rope: Mapping[str, Any], where: str) -> dict[str, float]:
    """What `mscale` and `mscale_all_dim` together say of it; nothing where they are not both given."""
    numbers = [stated(rope, key, 0) for key in ("mscale", "mscale_all_dim", "factor")]
    if not all(isinstance(number, int | float) and 0 <= number <= LARGEST_FACTOR for number in numbers):
        raise UserError(f"{where}: mscale, mscale_all_dim, factor are {shown(numbers)}: give numbers from 0 to 1e9")
    mscale, mscale_all_dim, factor = numbers
    if not mscale or not mscale_all_dim or factor <= 1:
        return {}
    return {"attention_factor": (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all_dim * math.log(factor) + 1)}


def _write_scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.method == "ntk":
        power = config.rope_width / max(1, config.rope_width - 2)
        theta = config.rope_theta * scaling.factor**power
        raise UserError(f"rope_scaling.method must not be ntk: rope_theta={theta!r} without scaling computes the same")
    if scaling.method == "dynamic" and scaling.original_max_positions != config.max_positions:
        raise UserError(f"rope_scaling.original_max_positions must be max_positions={config.max_positions} for dynamic")
    fields = {key: getattr(scaling, ours) for key, ours in FIELDS_OF_METHOD[scaling.method].items()}
    return {"rope_type": scaling.method, **{key: value for key, value in fields.items() if value is not None}}
