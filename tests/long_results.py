"""Keeps what `make long` found: one JSON file with commit, machine, versions, and each proof's outcome and numbers.

A pytest plugin, loaded by the Makefile. A proof adds its counts and seed with pytest's `record_property`. Figures are
quoted only from such a file.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long-results", type=Path, help="where to write the results as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--long-results"):
        config.pluginmanager.register(Results(path))


class Results:
    """Collects reports, and writes them when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.proofs: list[dict[str, Any]] = []
        self.began = time.time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.proofs.append(
                {
                    "proof": report.nodeid,
                    "outcome": report.outcome,
                    "reason": report.longrepr[2] if isinstance(report.longrepr, tuple) else None,
                    "seconds": round(report.duration, 3),
                    **dict(report.user_properties),
                }
            )

    def pytest_sessionfinish(self) -> None:
        from trivium.files import write_atomically
        from trivium.machine import describe_machine

        found = {
            "commit": git("rev-parse", "HEAD"),
            "changed_files": len(git("status", "--porcelain").splitlines()),
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 1),
            "machine": dataclasses.asdict(describe_machine()),
            "proofs": sorted(self.proofs, key=lambda proof: proof["proof"]),
        }
        write_atomically(self.path, json.dumps(found, indent=2) + "\n")


def git(*arguments: str) -> str:
    """What git says; empty where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
