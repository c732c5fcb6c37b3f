"""Masks and biases by distance against loops over pairs of positions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from trivium.models.masks import alibi_bias, attention_mask, cross_mask, relative_buckets

CPU = torch.device("cpu")


def seen_by_rule(
    query: int, key: int, segments: list[int], causal: bool, window: int, prefix: list[bool] | None
) -> bool:
    """The rule in words: same document; not ahead, unless in the prefix; near enough."""
    if segments[query] != segments[key]:
        return False
    if causal and key > query and not (prefix is not None and prefix[key]):
        return False
    return not window or abs(query - key) < window


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize(
    ("tokens", "case"),
    [*itertools.product([9, 4, 1], ["plain", "packed"]), (9, "prefix")],  # a prefix is read at once
)
def test_mask_is_the_rule(causal: bool, window: int, tokens: int, case: str) -> None:
    length = 9
    prefix = [True, True, True, False, False, True, False, False, False] if case == "prefix" and causal else None
    segments = [1, 1, 1, 1, 2, 2, 2, 0, 0] if case == "packed" else [1] * length
    mask = attention_mask(
        tokens,
        torch.tensor([segments]) if case == "packed" else None,
        length,
        causal,
        torch.float32,
        CPU,
        window=window,
        prefix_BS=None if prefix is None else torch.tensor([prefix]),
    )
    for row, key in itertools.product(range(tokens), range(length)):
        query = length - tokens + row
        expected = seen_by_rule(query, key, segments, causal, window, prefix)
        if mask is None:  # nothing hidden but the future, which attention is told in its own way
            assert expected == (not causal or key <= query)
        else:
            assert (mask[0, 0, row, key] == 0) == expected, (query, key)


def test_targets_see_the_source_of_their_number() -> None:
    source = torch.tensor([[1, 1, 2, 0]])
    mask = cross_mask(torch.tensor([[2, 1, 0, 3]]), source, torch.float32)
    assert mask is not None
    seen = [[key for key in range(4) if mask[0, 0, row, key] == 0] for row in range(4)]
    assert seen == [[2], [0, 1], [3], [0, 1, 2, 3]]  # a target without a source sees everything, not nothing
    alone = cross_mask(None, source, torch.float32)
    assert alone is not None and (alone[0, 0, 0] == 0).tolist() == [True, True, False, False]
    assert cross_mask(torch.tensor([[1]]), None, torch.float32) is None


@pytest.mark.parametrize("heads", [1, 4, 8, 6, 12])
def test_alibi_is_a_slope_times_the_distance(heads: int) -> None:
    bias = alibi_bias(heads, 3, 7, CPU)
    assert bias.shape == (1, heads, 3, 7)
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * (heads - power), 2)]
    for head, row, key in itertools.product(range(heads), range(3), range(7)):
        assert float(bias[0, head, row, key]) == pytest.approx(-slopes[head] * abs(4 + row - key), rel=1e-6)


def test_relative_buckets_of_t5() -> None:
    """Half of the buckets exact, the others logarithmic; a stack that sees both ways splits them by direction."""
    causal = relative_buckets(1, 200, True, 32, 128, CPU)[0].flip(0).tolist()  # by distance back, 0 to 199
    assert causal[:16] == list(range(16)) and causal[16] == 16
    assert causal[127:] == [31] * 73 and all(a <= b for a, b in itertools.pairwise(causal))
    both = relative_buckets(200, 200, False, 32, 128, CPU)
    assert both[0, :8].tolist() == [0, *range(17, 24)] and both[7, :8].flip(0).tolist() == list(range(8))
    assert int(both.max()) == 31


def bucket_by_rule(ahead: int, causal: bool, buckets: int, furthest: int) -> int:
    """The rule of T5 for one distance, in plain arithmetic."""
    first = 0
    if not causal:
        buckets //= 2
        first, ahead = (buckets if ahead > 0 else 0), -abs(ahead)
    distance, exact = max(0, -ahead), buckets // 2
    if distance < exact:
        return first + distance
    far = exact + int(math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact))
    return first + min(far, buckets - 1)


def wrong_buckets(causal: bool, sign: int = 1) -> int:
    """How many of the buckets of 150 positions are not by the rule; `sign` -1 takes ahead for back."""
    found = relative_buckets(150, 150, causal, 32, 100, CPU)
    return sum(
        int(found[query, key]) != bucket_by_rule(sign * (key - query), causal, 32, 100)
        for query, key in itertools.product(range(0, 150, 7), range(150))
    )


def test_relative_buckets_are_the_rule() -> None:
    assert wrong_buckets(True) == wrong_buckets(False) == 0


def test_broken_control_buckets_by_the_other_direction_are_seen() -> None:
    assert wrong_buckets(True, -1) > 100 and wrong_buckets(False, -1) > 100
