"""The textbook's arithmetic, as it is printed in the textbook."""

from __future__ import annotations

from trivium.planner.rule_of_thumb import BYTES_MORE_TO_TRAIN, BYTES_TO_TRAIN, by_precision, rule_of_thumb


def test_a_billion_parameters() -> None:
    assert rule_of_thumb(10**9) == {"inference_bytes": 4 * 10**9, "training_bytes": 24 * 10**9}
    assert sum(BYTES_MORE_TO_TRAIN.values()) == 20 and BYTES_TO_TRAIN == 24
    assert by_precision(10**9) == {
        "fp32": 4 * 10**9,
        "fp16": 2 * 10**9,
        "bf16": 2 * 10**9,
        "int8": 10**9,
        "int4": 5 * 10**8,
    }


def test_half_bytes_are_rounded_up() -> None:
    assert by_precision(3)["int4"] == 2
