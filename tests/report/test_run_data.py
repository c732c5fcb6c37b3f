"""The reader survives whatever a run directory holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from trivium.errors import UserError
from trivium.report import run_data
from trivium.report.run_data import number, read_run, words
from trivium.training.log import MetricsLog


def write_log(run: Path, lines: list[str]) -> None:
    (run / "metrics.jsonl").write_text("".join(lines))


def test_curves_and_events(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(steps=250))
    assert run.curve("loss").steps == tuple(range(1, 251))
    assert run.curve("held_out_loss").steps == (100, 200)
    assert run.events == ((100, "checkpoint saved"), (200, "checkpoint saved"))
    assert run.last_step == 250
    assert run.notes == ()
    assert run.recipe["training"] == {"steps": 1200, "learning_rate": 0.001}


def test_reads_what_the_loop_writes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 2.5, "tokens": 64, "mfu": 0.5})
    log.write({"step": 2, "loss": float("inf"), "grad_norm": float("nan")})
    log.write({"step": 2, "held_out_loss": 2.25, "held_out_bits_per_byte": 1.0})
    log.write({"step": 2, "event": "left out: the loss is inf"})
    log.close()
    run = read_run(tmp_path)
    assert run.curve("loss").values == (2.5,)
    assert run.curve("held_out_bits_per_byte").steps == (2,)
    assert run.events == ((2, "left out: the loss is inf"),)
    assert run.non_finite == 2
    assert not any("damaged" in note for note in run.notes)


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path / "absent")


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    good = [json.dumps({"step": step, "loss": 3.0}) + "\n" for step in range(3)]
    deep = "[" * 30_000 + "\n"
    bad = ["{broken\n", "[1]\n", '{"step": "x", "loss": 1}\n', '{"step": -1}\n', "\x00\xff\n", deep, '{"step": 1e9}\n']
    write_log(tmp_path, [good[0], *bad, good[1], good[2], '{"step": 3, "lo'])
    run = read_run(tmp_path)
    assert run.curve("loss").steps == (0, 1, 2)
    # The last line has no end yet: a run that is being written, not damage.
    assert f"{len(bad)} damaged lines of metrics.jsonl skipped." in run.notes


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = ["NaN", "Infinity", "null", "[]", '"3"', "true", "1" + "0" * 400, "2.5"]
    write_log(tmp_path, [f'{{"step": {step}, "loss": {value}}}\n' for step, value in enumerate(values)])
    run = read_run(tmp_path)
    assert run.curve("loss").values == (2.5,)
    assert run.non_finite == 3


def test_a_resumed_run_replaces_what_it_logs_again(tmp_path: Path) -> None:
    def line(step: int, loss: float) -> str:
        return json.dumps({"step": step, "loss": loss}) + "\n"

    first = [line(step, 1.0) for step in range(10)]
    first.insert(8, json.dumps({"step": 7, "held_out_loss": 1.0}) + "\n")
    write_log(tmp_path, first + [line(step, 2.0) for step in range(5, 8)])
    run = read_run(tmp_path)
    assert run.curve("loss").steps == tuple(range(8)), "steps 8 and 9 were undone by the resume"
    assert run.curve("loss").values == (1.0,) * 5 + (2.0,) * 3
    assert not run.curve("held_out_loss"), "measured on weights that are gone"
    assert run.last_step == 7


def test_limits(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(steps=100)
    monkeypatch.setattr(run_data, "MAX_METRICS_BYTES", 2000)
    monkeypatch.setattr(run_data, "MAX_DOCUMENT_BYTES", 300)
    run = read_run(directory)
    assert 0 < len(run.curve("loss").steps) < 20
    assert any("Only the first" in note for note in run.notes)
    assert any("summary.json is larger" in note for note in run.notes)


def test_recipe_bomb_is_harmless(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "recipe.yaml").write_text("\n".join(levels))
    assert read_run(tmp_path).recipe_text.startswith("a0")


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_read(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    alphabet = b'{}[]":,\n0123456789eE.-+ \\u\x00\xffstepos&*!'
    for name in ("recipe.yaml", "metrics.jsonl", "summary.json"):
        (tmp_path / name).write_bytes(bytes(draw.choice(alphabet) for _ in range(400)))
    read_run(tmp_path)


def test_number_and_words() -> None:
    facts = {"a": True, "b": 3, "c": "text\ud800", "d": float("nan")}
    assert number(facts, "a", "d", "b") == 3
    assert number(facts, "a", "c", "absent") is None
    assert words(facts, "c") == "text?"
    assert words(facts, "b") == ""
    assert words({"long": "x" * 50}, "long", limit=10) == "x" * 10 + " […]"
