"""The functions of the standard library: real code without its docstring, real first sentences."""

from __future__ import annotations

import ast
import itertools

from trivium.data.functions import LONGEST_CODE, LONGEST_SUMMARY, documented_functions


def test_functions_of_this_python() -> None:
    found = list(itertools.islice(documented_functions(), 300))
    assert len(found) == 300
    for function in found:
        assert len(function.code) <= LONGEST_CODE and len(function.summary) <= LONGEST_SUMMARY
        assert "\n" not in function.summary and function.summary.endswith(".")
        (node,) = ast.parse(function.code).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(node) is None
        sentence = "".join(function.summary.removesuffix(".").split())
        assert sentence in "".join(function.document.replace("\\", "").split()) or "\\" in function.document
    assert len({function.package for function in found}) > 3
