"""`import trivium` and every `--help` are quick and do not import torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import trivium
from house import verbs
from trivium.cli import VERBS, main

SECONDS = 0.75
"""Processor time, best of three: what a loaded machine adds in waiting does not count. Processors differ by two."""

HELP = "import sys\nfrom trivium.cli import main\nstatus = main([*sys.argv[1:], '--help'])\n"
REPORT = (
    "\nsys.stderr.write(' '.join(m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules))\nsys.exit(status)"
)


def run(code: str, *arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Processor seconds of a fresh interpreter, and what it said."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, done


def quick(code: str, *arguments: str, limit: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run up to three times; fails when none is quick enough."""
    seconds = []
    for _ in range(3):
        taken, done = run(code, *arguments)
        assert done.returncode == 0, done.stderr
        seconds.append(taken)
        if taken < limit:
            return done
    raise AssertionError(f"took {min(seconds):.2f} s")


@pytest.mark.parametrize("words", verbs.lines(), ids=" ".join)
def test_help_is_quick_and_free_of_torch(words: tuple[str, ...]) -> None:
    done = quick(HELP + REPORT, *words)
    assert done.stderr == "", f"imports {done.stderr}"
    assert done.stdout.startswith("Usage" if words else "Trivium")
    assert "Example" in done.stdout or len(words) < 2, "help teaches by an example"


def test_import_is_quick_and_free_of_torch() -> None:
    done = quick("import sys, trivium\nstatus = 0" + REPORT)
    assert done.stderr == "", f"imports {done.stderr}"


def test_the_controls_torch_and_time_are_seen() -> None:
    assert "torch" in run("import sys, torch\nstatus = 0" + REPORT)[1].stderr
    with pytest.raises(AssertionError, match="took"):
        quick("import time\nwhile time.process_time() < 0.1: pass", limit=0.05)


def test_every_verb_is_in_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {verb} " in overview for verb in VERBS)


def test_every_public_name_exists() -> None:
    for name in trivium.__all__:
        assert getattr(trivium, name) is not None
    with pytest.raises(AttributeError, match="did you mean Tokenizer"):
        _ = trivium.Tokeniser  # type: ignore[attr-defined]
