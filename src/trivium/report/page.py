"""`<run>/report.html`: one page that says what was trained on what, how it went, and what to do next.

The page is one file: no script, no font, no image is fetched (a content security policy in the page forbids it), so
it can be mailed, printed and opened in ten years. It can be written at any moment of a run, and again later. The
invariants its test checks: the same files give the same bytes; hostile text stays text; nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

from trivium.files import write_atomically
from trivium.report import fewer_bits, ledger, markup, sections
from trivium.report.run_data import RunData, read_run
from trivium.report.style import STYLE

# No script runs and nothing is fetched, whatever the text of a sample or a recipe holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html` and return its path. UserError when `run_dir` is not a run directory."""
    target = run_dir / "report.html"
    write_atomically(target, render(read_run(run_dir)))
    return target


def render(run: RunData) -> str:
    """The page as text."""
    parts = (
        sections.header,
        sections.what_was_trained,
        sections.learning,
        ledger.gains,
        ledger.section,
        sections.held_out,
        sections.cost,
        fewer_bits.section,
        sections.samples,
        sections.use,
        sections.reproduce,
    )
    return page(run.directory.resolve().name or "run", "\n".join(part(run) for part in parts))


def page(title: str, body: str) -> str:
    """A page of its own around `body`; `title` is plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.text(title)} · Trivium report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )
