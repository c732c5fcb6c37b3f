"""The state comes back as it went in, or is refused before anything is written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.checkpoints.state import decode_state, encode_state

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None))
keys = st.text(max_size=8).filter(lambda key: key != "$float")
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=12)


def same(one: Any, two: Any) -> bool:
    """Equal, of equal types, NaN equal to NaN, and -0.0 different from 0.0."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return repr(one) == repr(two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@settings(max_examples=100, deadline=None, database=None)
@given(st.dictionaries(keys, values))
def test_what_goes_in_comes_out(state: dict[str, Any]) -> None:
    encoded = encode_state(state)
    assert same(decode_state(encoded), state)
    assert encode_state(dict(reversed(state.items()))) == encoded, "equal states have equal bytes"
    json.loads(encoded, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_floats_that_json_lacks_are_kept() -> None:
    state = decode_state(encode_state({"loss": math.nan, "log": [math.inf, -math.inf, -0.0, 5e-324]}))
    assert math.isnan(state["loss"]) and state["log"] == [math.inf, -math.inf, 0.0, 5e-324]
    assert math.copysign(1, state["log"][2]) == -1


def test_a_tuple_comes_back_as_a_list() -> None:
    assert decode_state(encode_state({"rng": (3, (1, 2), None)})) == {"rng": [3, [1, 2], None]}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, torch.ones(1)]}}, r"state\['a'\]\['b'\]\[1\]: a Tensor cannot be stored"),
        ({"a": b"bytes"}, r"state\['a'\]: a bytes cannot"),
        ({"a": {1: "x"}}, r"state\['a'\]: keys must be strings"),
        ({"a": {"$float": "nan"}}, "other than"),
        ({"a": {1, 2}}, "a set cannot"),
    ],
)
def test_anything_else_is_refused_by_its_place(state: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encode_state(state)


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff", b'{"$float": "nan"}'])
def test_not_a_state(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_state(data)
