"""Documents that name tests name tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((TESTS.parent / "docs").glob("*.md"))


def unknown_proofs(text: str) -> list[str]:
    """The tests, written `folder/file.py::name` as seen from this folder, that are not there."""
    unknown = []
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", text):
        path = TESTS / file
        defined = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
        if name not in {node.name for node in defined if isinstance(node, ast.FunctionDef)}:
            unknown.append(f"{file}::{name}")
    return unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_proofs_that_documents_name_exist(document: Path) -> None:
    assert unknown_proofs(document.read_text()) == []


def test_the_control_a_proof_that_is_gone_is_seen() -> None:
    assert unknown_proofs("`house/test_documented_proofs.py::test_gone`") and unknown_proofs("`no/file.py::test_x`")
    assert not unknown_proofs("`house/test_documented_proofs.py::test_proofs_that_documents_name_exist`")
