"""Progress never disturbs the work it reports on, and never touches stdout."""

from __future__ import annotations

import io
import math

import pytest

from trivium.progress import SILENT, Progress, Silent, TerminalProgress, amount, short_bytes, short_number, short_time


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def work(progress: Progress) -> None:
    progress.advance()
    progress.finish()
    progress.start("first", total=3, unit="rows")
    for _ in range(3):
        progress.advance()
    progress.note("half way [bold]not markup[/bold]")
    progress.start("second")
    progress.advance(5_000)
    progress.finish()
    progress.finish()


@pytest.mark.parametrize("progress", [SILENT, Silent()])
def test_silent(progress: Progress, capfd: pytest.CaptureFixture[str]) -> None:
    work(progress)
    assert capfd.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    work(TerminalProgress(stream, seconds_between_lines=0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "first ..."
    assert lines[1].startswith("first: 1/3 rows, ") and "left" in lines[1]
    assert lines[4:6] == ["half way [bold]not markup[/bold]", "first: 3 rows, 0s"]
    assert lines[6] == "second ..." and lines[-1] == "second: 5.00k, 0s"
    assert capfd.readouterr() == ("", "")


def test_lines_are_rare() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream, seconds_between_lines=1e9)
    progress.start("work", total=1000)
    for _ in range(1000):
        progress.advance()
    assert stream.getvalue() == "work ...\n"


def test_a_bar_on_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    work(TerminalProgress(stream))
    assert "[bold]not markup[/bold]" in stream.getvalue()
    assert "first: 3 rows, " in stream.getvalue()
    assert capfd.readouterr() == ("", "")


def test_stderr_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    work(TerminalProgress())
    out, err = capfd.readouterr()
    assert out == "" and "second ..." in err


def test_a_reader_that_has_gone_stops_nothing() -> None:
    work(TerminalProgress(Gone(), seconds_between_lines=0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.25, "0.2"), (7, "7"), (950, "950"), (999.7, "1.00k"), (12_345, "12.3k"), (123_456, "123k")),
        *((4_560_000, "4.56M"), (7.89e9, "7.89G"), (999_999, "1.00M"), (1e13, "10000G")),
    ],
)
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (950, "950 B"), (29_000, "29.0 kB"), (687e6, "687 MB"), (7.89e9, "7.89 GB")]
)
def test_short_bytes(value: float, text: str) -> None:
    assert short_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1, "texts", "1 text"), (0, "texts", "0 texts"), (29_000, "B", "29.0 kB"), (12_345, "tokens", "12.3k tokens")],
)
def test_an_amount_agrees_with_its_unit(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_lines_of_bytes_and_of_single_things(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("trivium.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = TerminalProgress(stream, seconds_between_lines=1)
    progress.start("counting words", total=58_000, unit="B")
    now += 10
    progress.advance(29_000)
    progress.start("writing samples", total=1, unit="texts")
    now += 10
    progress.advance()
    progress.finish()
    assert stream.getvalue().splitlines() == [
        *("counting words ...", "counting words: 29.0 kB/58.0 kB, 2.90 kB/s, 10s left", "counting words: 29.0 kB, 10s"),
        *("writing samples ...", "writing samples: 1/1 text, 0.1/s, 0s left", "writing samples: 1 text, 10s"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (8.4, "8s"), (59.7, "1m 00s"), (200, "3m 20s"), (7500, "2h 05m"), (-1, "0s")]
)
def test_short_time(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


def test_rate_and_time_left_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("trivium.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = TerminalProgress(stream, seconds_between_lines=1)
    progress.start("train", total=4_000_000, unit="tokens")
    now += 10
    progress.advance(1_000_000)
    assert stream.getvalue().splitlines()[-1] == "train: 1.00M/4.00M tokens, 100k/s, 30s left"
    now += math.pi
    progress.finish()
    assert stream.getvalue().splitlines()[-1] == "train: 1.00M tokens, 13s"
