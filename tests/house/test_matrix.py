"""The support matrix: a cell says yes only where its tests ran and passed, and no row is forgotten."""

from __future__ import annotations

import json
from pathlib import Path

from matrix_cells import OBJECTIVES, TABLES, refused, yes
from matrix_results import state
from trivium.data.objectives_settings import OBJECTIVES as ALL_OBJECTIVES
from trivium.families import FAMILIES
from trivium.matrix import FILE, as_markdown, as_text, read_matrix

REPOSITORY = Path(__file__).resolve().parents[2]
CELL = yes(("models/test_a.py::test_x*",), ("models/test_b.py::test_y[[]*bert*]",))
PASSED = {"models/test_a.py::test_x": "passed", "models/test_b.py::test_y[1-bert]": "passed"}


def test_a_cell_says_yes_only_if_its_tests_ran_and_passed() -> None:
    assert state(CELL, PASSED)["state"] == "yes"
    assert state(refused(CELL.tests), PASSED)["state"] == "refused"
    for name in PASSED:
        for outcome in ("failed", "skipped"):
            assert state(CELL, {**PASSED, name: outcome})["state"] == "not run"
        assert state(CELL, {key: value for key, value in PASSED.items() if key != name})["state"] == "not run"
    more = {"models/test_a.py::test_x[other]": "failed"}
    assert state(CELL, {**PASSED, **more})["state"] == "not run"


def test_every_family_and_objective_has_a_row() -> None:
    assert set(TABLES[0].rows) == set(FAMILIES)
    assert set(OBJECTIVES) == set(ALL_OBJECTIVES)


def test_the_stored_matrix_is_of_these_cells_and_its_page_is_of_it() -> None:
    matrix = read_matrix()
    assert [table["title"] for table in matrix["tables"]] == [table.title for table in TABLES]
    for stored, table in zip(matrix["tables"], TABLES, strict=True):
        found = {
            (row, column): cell["tests"] for row, cells in stored["rows"].items() for column, cell in cells.items()
        }
        wanted = {
            (row, column): list(cell.tests) for row, cells in table.rows.items() for column, cell in cells.items()
        }
        assert found == wanted, f"{table.title}: run `make matrix`"
        not_run = [place for place in found if stored["rows"][place[0]][place[1]]["state"] == "not run"]
        assert not not_run, not_run
    assert (REPOSITORY / "docs" / "matrix.md").read_text(encoding="utf-8") == as_markdown(matrix)
    assert "llama" in as_text(matrix) and json.loads(FILE.read_text(encoding="utf-8")) == matrix


def test_every_pattern_names_a_test_that_exists() -> None:
    for table in TABLES:
        for cells in table.rows.values():
            for pattern in (pattern for cell in cells.values() for pattern in cell.tests):
                file, _, name = pattern.rstrip("*").partition("::")
                text = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
                assert f"def {name.split('[')[0].rstrip('*')}" in text, pattern
