"""Documents that name tests name tests that exist; recipes that they show are recipes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.pretraining.recipe import PretrainRecipe

TESTS = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((TESTS.parent / "docs").glob("*.md"))
OBJECTIVES = TESTS.parent / "docs" / "objectives.md"
# What names files of the reader's, which are not here.
READERS_OWN = ("start_from", "tokenizer")


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


def recipes(text: str) -> list[dict[str, Any]]:
    """The `yaml` blocks of a document: the first is a whole recipe, which the others change."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    return [{**blocks[0], **{key: part for key, part in block.items() if key not in READERS_OWN}} for block in blocks]


@pytest.mark.parametrize("recipe", recipes(OBJECTIVES.read_text()), ids=lambda recipe: str(recipe["objective"])[:40])
def test_recipes_that_documents_show_decode(recipe: dict[str, Any]) -> None:
    assert build_settings(PretrainRecipe, recipe, "objectives.md").objective.name in str(recipe["objective"])


def test_the_control_a_recipe_that_makes_no_sense_is_seen() -> None:
    (recipe,) = recipes("```yaml\nrun: x\ndata: {train: [a]}\nobjective: masked\nmodel: {family: t5, width: 8}\n```\n")
    with pytest.raises(UserError):
        build_settings(PretrainRecipe, recipe, "objectives.md")
