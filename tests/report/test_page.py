"""The page: complete, self-contained, the same bytes for the same run, and safe whatever the run holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trivium.errors import UserError
from trivium.report import markup
from trivium.report.page import render, write_report
from trivium.report.run_data import read_run
from trivium.report.style import STYLE

MakeRun = Callable[..., Path]

# Each breaks out of another place: text, attribute, style, script, comment, formula, shell command, JSON string.
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"><svg onload=alert(1)>' onmouseover='alert(1)"
    "</style><style>*{background:url(http://evil.example/x)}</style></pre><!-- $x^2$ `touch x` "
    '\\" \x00\x1b[31m \u202e\ud800'
)
VOID = {"meta", "link", "br", "img", "input", "hr"}
ALLOWED = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body main header section h1 h2 h3 p dl div dt dd table tr th td figure figcaption "
        "pre span details summary ul li svg defs g path use text clippath rect tspan",
    )
)


class Reader(HTMLParser):
    """Collects elements and attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.addresses += [url for _, value in attrs for url in re.findall(r"url\((.*?)\)", value or "")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def is_safe(page: str) -> bool:
    """No element but ours, no handler, no style but ours, nothing fetched (addresses are of drawings in the page)."""
    try:
        reader = read(page)
    except AssertionError:
        return False
    return (
        reader.elements <= ALLOWED
        and not any(name.startswith("on") for name in reader.attributes)
        and all(address.startswith("#") for address in reader.addresses)
        and page.count("<style") <= 1
        and "url(" not in STYLE
    )


def hostile(value: Any) -> Any:
    """The same structure with every text, and every key that is not needed to find things, made hostile."""
    match value:
        case str():
            return HOSTILE
        case list():
            return [hostile(item) for item in value]
        case dict():
            return {key: hostile(item) for key, item in value.items()} | {HOSTILE: HOSTILE, f"{HOSTILE}_bytes": 3}
    return value


def hostile_run(make_run: MakeRun, name: str = "standard-library") -> Path:
    run = make_run(steps=120, recipe=f"# {HOSTILE.encode('utf-8', 'replace').decode()}\n", name=name)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(
        json.dumps(hostile(summary) | {"error": HOSTILE, "reference": hostile({"name": ""})})
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 120, "event": HOSTILE}) + "\n")
    return run


def test_page_of_a_finished_run(make_run: MakeRun) -> None:
    run = make_run()
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    text = read(page).text
    for expected in (
        "1.08 bits per byte, below xz -9 (1.84) and the unigram entropy",
        "13,893,504",
        "Python 3.11 standard library",
        "Bytes per token",
        "Gradient norm",
        "Median 5,1",
        "The plan is 2 % below what was measured.",
        '"""Return the lines of a file, without their ends."""',
        "temperature 0.8, top p 0.95, seed 0",
        "learning_rate: 0.001",
        "trivium generate",
        "AutoModelForCausalLM",
        "2.13.0",
        "checkpoint saved",
    ):
        assert expected in text, expected
    assert "Left out of this page" not in text
    assert is_safe(page)
    assert len(page) < 400_000


def test_same_run_same_bytes(make_run: MakeRun) -> None:
    run = make_run(steps=150)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_ids_are_unique(make_run: MakeRun) -> None:
    ids = read(render(read_run(make_run()))).ids
    assert ids and len(ids) == len(set(ids))


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    page = write_report(hostile_run(make_run)).read_bytes().decode("utf-8", "strict")
    assert is_safe(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page, "it is shown, not dropped"
    assert "Content-Security-Policy" in page and "default-src 'none'" in page


def test_the_safety_check_sees_unescaped_text(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken control: without escaping, the check above turns red."""
    run = hostile_run(make_run)
    monkeypatch.setattr(markup, "text", lambda value: value)
    assert not is_safe(render(read_run(run)))


def test_run_in_progress(make_run: MakeRun) -> None:
    page = write_report(make_run(steps=30, with_summary=False)).read_text()
    text = read(page).text
    assert "Not finished: step 30 of 1,200" in text
    assert "No held-out evaluation has been logged." in text
    assert "The run has not been measured on held-out text." in text
    assert "summary.json is not there." in text
    assert "trivium resume" in text
    assert "trivium generate" not in text, "there is no model yet"


def test_run_that_failed_before_its_first_step(make_run: MakeRun) -> None:
    run = make_run(steps=0, changes={"status": "failed", "error": "out of memory", "steps": 0})
    text = read(write_report(run).read_text()).text
    assert "Failed after 0 steps: out of memory." in text
    assert "No curves" in text


def test_only_metrics(make_run: MakeRun) -> None:
    run = make_run(steps=5, with_summary=False)
    (run / "recipe.yaml").unlink()
    text = read(write_report(run).read_text()).text
    assert "The recipe is left out" in text


def test_non_finite_values_are_named(make_run: MakeRun) -> None:
    run = make_run(steps=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": null, "grad_norm": Infinity}\n')
    assert "2 logged values were NaN or infinite" in read(write_report(run).read_text()).text


def test_a_long_run_stays_small(make_run: MakeRun) -> None:
    page = write_report(
        make_run(steps=20_000, changes={"samples": [{"prompt": "x" * 10**5, "text": "y" * 10**5}] * 50})
    )
    assert page.stat().st_size < 1_000_000


@pytest.mark.parametrize("value", [None, 3, "text", [], [[]], {"a": {"b": []}}, [None, 1], True, -1, 10**400])
def test_any_value_in_the_summary(make_run: MakeRun, value: Any) -> None:
    run = make_run(steps=3)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(dict.fromkeys(summary, value)))
    assert is_safe(write_report(run).read_text())


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
