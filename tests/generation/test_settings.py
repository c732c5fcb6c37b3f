"""What generation settings accept, and that reading them does not import torch."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from trivium.generation.settings import GenerationSettings

REFUSED: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"temperature": -0.1},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"top_k": -1},
    {"top_p": 1.1},
    {"min_p": -0.1},
    {"repetition_penalty": 0},
    {"seed": 2**63},
    {"stop": [""]},
    {"stop": ["x" * 257]},
    {"stop": ["x"] * 33},
    {"add_bos": "perhaps"},
    {"num_beams": 0},
    {"num_beams": 2, "temperature": 0.5},
    {"length_penalty": math.nan},
    {"early_stopping": "always"},
    {"no_repeat_ngram_size": -1},
    {"forced_bos_id": -1},
    {"suppressed_ids": [-1]},
    {"min_new_tokens": -1},
    {"rows_per_batch": 0},
    {"speculate": -1},
    {"speculate": 65},
    {"speculate": 4, "num_beams": 2},
    {"kv_cache": "int4"},
    {"kv_cache": "int8", "num_beams": 2},
    {"top_kk": 5},
]


@pytest.mark.parametrize("values", REFUSED, ids=str)
def test_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationSettings(**values)


def test_accepts_one_stop_string_or_several() -> None:
    assert GenerationSettings(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert GenerationSettings(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_greedy_is_temperature_zero() -> None:
    assert GenerationSettings().greedy
    assert GenerationSettings(temperature=1e-300).greedy
    assert not GenerationSettings(temperature=0.01).greedy


def test_torch_is_not_imported() -> None:
    code = "import sys, trivium.metrics, trivium.generation.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
