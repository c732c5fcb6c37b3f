"""Makes `matrix.json` from a run of the tests that stand behind its cells (`matrix_cells.py`).

A pytest plugin, loaded by `make matrix`. A cell is yes (or refused) when each of its patterns matched at least one
test, and every test that matched passed; a test that was skipped proves nothing.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from long_results import git
from matrix_cells import TABLES, Cell


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", type=Path, help="where to write the matrix as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--matrix"):
        config.pluginmanager.register(Matrix(path))


class Matrix:
    """Collects outcomes, and writes the matrix when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.outcomes[report.nodeid.removeprefix("tests/")] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # a worker; its controller has all reports
        made = {
            "commit": git("rev-parse", "HEAD"),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "torch": importlib.metadata.version("torch"),
            "transformers": importlib.metadata.version("transformers"),
            "passed": sum(outcome == "passed" for outcome in self.outcomes.values()),
        }
        tables = [
            {
                "title": table.title,
                "columns": list(table.columns),
                "rows": {
                    row: {column: state(cell, self.outcomes) for column, cell in cells.items()}
                    for row, cells in table.rows.items()
                },
            }
            for table in TABLES
        ]
        self.path.write_text(json.dumps({"made": made, "tables": tables}, indent=1) + "\n", encoding="utf-8")


def state(cell: Cell, outcomes: Mapping[str, str]) -> dict[str, Any]:
    """{"state", "tests": the patterns, "passed": how many tests}."""
    matched = [[name for name in outcomes if fnmatch.fnmatchcase(name, pattern)] for pattern in cell.tests]
    proven = all(names and all(outcomes[name] == "passed" for name in names) for names in matched)
    return {
        "state": cell.says if proven else "not run",
        "tests": list(cell.tests),
        "passed": sum(outcomes[name] == "passed" for names in matched for name in names),
    }
