"""What is not a tensor (step counters, data position, random generators): JSON that comes back as it went in.

Policy. Keys are strings, values None, bool, int, float, str, lists and dicts of them; a tuple comes back as a list.
Floats are exact (Python prints the shortest text that reads back to the same number). JSON has no NaN or infinity, and
a save must not fail because a loss was NaN, so they are written as `{"$float": "nan" | "inf" | "-inf"}`. Keys are
sorted, so that equal states give equal bytes. Anything else is a programming error, refused before a byte is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

SPECIAL = "$float"


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, ASCII, indented to be read by people, no NaN."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def encode_state(state: Mapping[str, Any]) -> bytes:
    """The bytes of `state.json`. Raises TypeError naming the place of what JSON cannot hold."""
    return canonical_json(_plain(state, "state"))


def decode_state(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The state back from its bytes. Raises ValueError where they are not a JSON object."""
    state = json.loads(bytes(data), object_hook=_revive)
    if not isinstance(state, dict):
        raise ValueError("it does not hold a JSON object")
    return state


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {SPECIAL: repr(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and key != SPECIAL for key in value):
            raise TypeError(f"{where}: keys must be strings other than {SPECIAL!r}")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(f"{where}: a {type(value).__name__} cannot be stored; tensors go beside the state, not into it")


def _revive(item: dict[str, Any]) -> Any:
    return float(item[SPECIAL]) if item.keys() == {SPECIAL} else item
