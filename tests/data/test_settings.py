from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from trivium.data.settings import DataSettings, SourceSettings


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("stdlib", [("stdlib", None)]),
        (["a.txt", "b"], [("a.txt", None), ("b", None)]),
        ({"path": "a", "weight": 2}, [("a", 2.0)]),
        ([{"path": "a", "weight": 0.7}, {"path": "b", "weight": 0.3}], [("a", 0.7), ("b", 0.3)]),
        ([SourceSettings(path="a")], [("a", None)]),
    ],
)
def test_training_text_is_a_path_or_a_list(train: Any, expected: list[tuple[str, float | None]]) -> None:
    settings = DataSettings.model_validate({"train": train})
    assert [(source.path, source.weight) for source in settings.train] == expected
    assert DataSettings.model_validate(settings.model_dump()) == settings
    assert DataSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": []}, "at least 1"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "1 of 2 sources have a weight; give it to all or none"),
        ({"train": {"path": "a", "weight": 0}}, "greater than 0"),
        ({"train": {"path": "a", "weight": float("nan")}}, "finite"),
        ({"train": {"path": "a", "wieght": 1}}, "wieght"),
        ({"train": 3}, "train"),
        ({"train": "a", "validation": "b", "held_out_fraction": 0.1}, "exclude each other"),
        ({"train": "a", "held_out_fraction": 1.0}, "less than 1"),
        ({"train": "a", "text_layout": "lines"}, "'file' or 'line'"),
        ({"train": "a", "sequence_length": 1}, "greater than or equal to 2"),
    ],
)
def test_mistakes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate(values)


def test_what_is_held_out() -> None:
    assert DataSettings(train="a").resolved_held_out_fraction == 0.01
    assert DataSettings(train="a", held_out_fraction=0.2).resolved_held_out_fraction == 0.2
    assert DataSettings(train="a", held_out_fraction=0.0).resolved_held_out_fraction == 0.0
    settings = DataSettings(train="a", validation="b")
    assert settings.validation == ("b",) and settings.resolved_held_out_fraction == 0.0


def test_settings_do_not_import_torch() -> None:
    program = "import sys, trivium.data.settings, trivium.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
