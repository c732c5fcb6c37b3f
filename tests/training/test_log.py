"""The log: whole lines, valid JSON, cut back exactly at a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium.training.log import TIMING_KEYS, MetricsLog, read_log, repeatable


def test_floats_come_back_to_the_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, 1e-300, 123456789.123456789]
    log = MetricsLog(tmp_path / "deep" / "m.jsonl")
    log.write({"step": 1, **{str(place): value for place, value in enumerate(values)}})
    assert list(read_log(tmp_path / "deep" / "m.jsonl")[0].values())[1:] == values
    log.close()


def test_non_finite_numbers_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"step": 1, "a": float("nan"), "b": float("-inf")})
    log.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None}


def test_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1})
    size = log.sync()
    log.write({"step": 2})
    log.close()
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')  # a kill in the middle of a line
    assert [record["step"] for record in read_log(path)] == [1, 2]
    log = MetricsLog(path, size)
    log.write({"step": 20})
    log.close()
    assert [record["step"] for record in read_log(path)] == [1, 20]


def test_a_new_run_begins_a_new_log_and_a_lost_one_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 9}\n')
    MetricsLog(path, 0).close()
    assert path.read_bytes() == b""
    path.unlink()
    log = MetricsLog(path, 1000)
    log.write({"step": 1})
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_repeatable_part_has_no_timing() -> None:
    record = {"step": 1, "loss": 2.0, **dict.fromkeys(TIMING_KEYS, 1.0)}
    assert repeatable(record) == {"step": 1, "loss": 2.0}
