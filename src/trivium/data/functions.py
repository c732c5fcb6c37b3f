"""The functions of the standard library with what their authors say of them: real pairs and real labels.

Each documented function of the corpus (`corpus.py`) gives its code without the docstring, the first sentence of the
docstring, and the package it lives in. Nothing is made up and nothing is downloaded; functions whose docstring says too
little or whose code is long are left out.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from trivium.data.corpus import standard_library_rows
from trivium.data.split import is_held_out

# Characters of a summary that says something and still fits a line or two.
SHORTEST_SUMMARY, LONGEST_SUMMARY = 15, 160
LONGEST_CODE = 1200


@dataclass(frozen=True)
class DocumentedFunction:
    """One function of the standard library."""

    package: str
    """The top-level package or module, such as `asyncio`."""
    document: str
    """The whole text of the file it is from, by which files are held out."""
    code: str
    """Its source without the docstring, dedented."""
    summary: str
    """The first sentence of its docstring, on one line."""


def documented_functions() -> Iterator[DocumentedFunction]:
    """All of them, in the order of the corpus."""
    for row in standard_library_rows():
        text = str(row.values["text"])
        package = row.file.split("/")[1].removesuffix(".py")  # stdlib/PACKAGE/...
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # a file written for a test of the parser
        lines = text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                summary, code = _summary(node), _code(node, lines)
                if summary and code:
                    yield DocumentedFunction(package, text, code, summary)


def split_functions(fraction: float) -> tuple[list[DocumentedFunction], list[DocumentedFunction]]:
    """(to train on, held out): by the file that each is from, as pretraining holds out whole files."""
    sides: tuple[list[DocumentedFunction], list[DocumentedFunction]] = ([], [])
    for function in documented_functions():
        sides[is_held_out(function.document, fraction)].append(function)
    return sides


def _summary(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The first sentence of the docstring; empty where it is none of a fit length."""
    paragraph = " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())
    sentence = paragraph.partition(". ")[0].rstrip(".")
    fits = SHORTEST_SUMMARY <= len(sentence) <= LONGEST_SUMMARY and " " in sentence
    return f"{sentence}." if fits else ""


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The lines of the function but those of its docstring; empty where nothing or too much is left."""
    docstring, end = node.body[0], node.end_lineno or node.lineno
    if len(node.body) < 2:
        return ""
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno or docstring.lineno : end]
    code = textwrap.dedent("\n".join(kept)).strip()
    return code if len(code) <= LONGEST_CODE else ""
