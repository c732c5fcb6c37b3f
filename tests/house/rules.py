"""The house rules as functions from source text to complaints, so that each can be shown to catch a bad file.

A source is a (dotted module name, text) pair, such as ("trivium.models.layers", "import torch ...").
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "trivium"
SOURCE = Path(__file__).resolve().parents[2] / "src" / PACKAGE

RUNGS: dict[str, int] = {
    **dict.fromkeys(("metrics", "kernels"), 0),
    **dict.fromkeys(("tokenizer", "models"), 1),
    **dict.fromkeys(("families", "data", "peft", "quantization", "generation"), 2),
    **dict.fromkeys(("checkpoints",), 3),
    **dict.fromkeys(("planner", "training", "report"), 4),
    **dict.fromkeys(("pretraining", "finetuning", "rlhf", "benchmarks"), 5),
    **dict.fromkeys(("stages", "quickstart", "studio", "serving"), 6),
    **dict.fromkeys(("cli",), 7),
}
"""The ladder of folders. Files at the top of the package (config.py, files.py, ...) stand below them all."""

TOP = ("__init__", "__main__")
"""Files of the package's top that stand above the ladder: the lazy names and the command's start."""

FILE_LINES, FUNCTION_LINES = 400, 60

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
BAD_IMPORTS = {
    **dict.fromkeys(("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"), "can run code"),
    **dict.fromkeys(("transformers", "peft", "trl", "rouge_score", "lm_eval", "tiktoken"), "is a test reference"),
    **dict.fromkeys(("pytest", "hypothesis"), "belongs to the tests"),
}
BAD_CALLS = {
    "print": "write to a stream, or report to a Progress",
    "eval": "runs code",
    "exec": "runs code",
    "compile": "makes code",
    "__import__": "hides an import",
    "torch.load": "unpickles: use safetensors",
    "torch.save": "pickles: use safetensors",
    "os.system": "runs a shell",
    **{f"yaml.{name}": "builds objects: use trivium.yaml_text" for name in ("load", "unsafe_load", "full_load")},
}
BAD_KEYWORDS = {"allow_pickle": "unpickles", "trust_remote_code": "runs code", "shell": "runs a shell"}
DYNAMIC_IMPORTERS = {PACKAGE, f"{PACKAGE}.cli", f"{PACKAGE}.training.trackers"}
"""The two lazy tables, and the optional packages of trackers: the only imports of a computed name."""


def sources() -> dict[str, str]:
    """Every module of the package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


# ------------------------------------------------------------------------------------------------ imports


def imported(module: str, node: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules that one import statement of `module` names, relative ones resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = any(other.startswith(module + ".") for other in modules)
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in modules else f"{base}:{alias.name}" if base == PACKAGE else base


def folder(module: str) -> str:
    """The part of the package a module belongs to: a folder's name, or "" for the files at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (len(parts) > 2 or parts[1] in RUNGS) else ""


def rung(module: str) -> int | None:
    """How high a module stands; None for a folder that is not on the ladder."""
    if module == PACKAGE or module.partition(".")[2] in TOP:
        return max(RUNGS.values()) + 1
    return RUNGS.get(folder(module)) if folder(module) else -1


def ladder(modules: Mapping[str, str]) -> list[str]:
    """Imports that do not point down, wherever in the file they stand."""
    complaints = []
    for module, text in modules.items():
        mine = rung(module)
        if mine is None:
            complaints.append(f"{module}: the folder {folder(module)!r} has no rung")
            continue
        for node in ast.walk(ast.parse(text)):
            for name in imported(module, node, modules):
                if name == f"{PACKAGE}:__version__" or name.partition(".")[0].partition(":")[0] != PACKAGE:
                    continue
                theirs = rung(name.partition(":")[0])
                same = folder(module) == folder(name) and ":" not in name and name != PACKAGE
                if theirs is None or not (theirs < mine or same):
                    complaints.append(f"{module}:{getattr(node, 'lineno', 0)}: imports {name.replace(':', '.')}")
    return complaints


def cycles(modules: Mapping[str, str]) -> list[str]:
    """Modules that need each other in order to be imported (imports in functions or for types do not
    count)."""
    graph: dict[str, set[str]] = {}
    for module, text in modules.items():
        names = {n for node in ast.parse(text).body for n in imported(module, node, modules)}
        graph[module] = {name for name in names if name in modules and name != module}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


# --------------------------------------------------------------------------------------------------- size


def sizes(module: str, text: str) -> list[str]:
    """Files and functions that have outgrown their page."""
    complaints = []
    if (lines := len(text.splitlines())) > FILE_LINES:
        complaints.append(f"{module}: {lines} lines (at most {FILE_LINES}): split it by concept")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > FUNCTION_LINES:
                complaints.append(f"{module}:{node.lineno}: {node.name} has {length} lines (at most {FUNCTION_LINES})")
    return complaints


# ----------------------------------------------------------------------------------------- words we do not
# use


def dotted(node: ast.AST) -> str:
    """`torch.load` of the expression torch.load; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def refused_words(module: str, text: str) -> list[str]:
    """What no file of ours contains: print, global, vague names, pickle, code from data, hidden imports."""
    complaints = []
    if vague := VAGUE_NAMES & set(module.split(".")):
        complaints.append(f"{module}: {vague.pop()!r} names no concept")
    for node in ast.walk(ast.parse(text)):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Global):
            complaints.append(f"{where}: global")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            complaints += [f"{where}: imports {root}, which {BAD_IMPORTS[root]}" for root in roots & set(BAD_IMPORTS)]
            if isinstance(node, ast.ImportFrom):
                called = {f"{node.module}.{alias.name}" for alias in node.names}
                complaints += [f"{where}: {name}: {BAD_CALLS[name]}" for name in called & set(BAD_CALLS)]
        elif isinstance(node, ast.Call):
            complaints += [f"{where}: {each}" for each in _refused_call(module, node)]
        elif isinstance(node, ast.Attribute) and dotted(node) in BAD_CALLS:
            complaints.append(f"{where}: {dotted(node)}: {BAD_CALLS[dotted(node)]}")
    return complaints


def _refused_call(module: str, node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    if isinstance(node.func, ast.Name) and name in BAD_CALLS:
        yield f"{name}: {BAD_CALLS[name]}"
    if name.rpartition(".")[2] == "import_module" and module not in DYNAMIC_IMPORTERS:
        yield "import_module: a computed name hides what is imported"
    for keyword in node.keywords:
        false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in BAD_KEYWORDS and not false:
            yield f"{keyword.arg}: {BAD_KEYWORDS[keyword.arg]}"


# ----------------------------------------------------------------------------------------------- docstrings


def undocumented(module: str, text: str) -> list[str]:
    """Modules, public classes, public functions and public methods without a docstring."""
    tree = ast.parse(text)
    complaints = [] if ast.get_docstring(tree) else [f"{module}: the module says nothing of itself"]

    def visit(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                public = not child.name.startswith("_")
                overload = any(dotted(d).rpartition(".")[2] == "overload" for d in child.decorator_list)
                if public and not overload and not ast.get_docstring(child):
                    complaints.append(f"{module}:{child.lineno}: {owner}{child.name} has no docstring")
                if isinstance(child, ast.ClassDef) and public:
                    visit(child, f"{child.name}.")
            elif isinstance(child, ast.If | ast.Try | ast.With):
                visit(child, owner)

    visit(tree, "")
    return complaints


# ------------------------------------------------------------------------------------------- settings are
# read


def unread_settings(fields: Mapping[str, list[str]], modules: Mapping[str, str]) -> list[str]:
    """Settings that nothing reads.

    `fields` names the settings of each class. A setting counts as read where `.name` is loaded outside its
    class, or inside it by a method or property that is itself read outside.
    """
    outside: dict[str, set[str]] = {name: set() for name in fields}
    inside: dict[str, dict[str, set[str]]] = {name: {} for name in fields}
    for text in modules.values():
        tree = ast.parse(text)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in fields]
        for node in classes:
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            inside[node.name] = {method.name: set(_loads(method)) for method in methods}
        for name in fields:
            others = [node for node in tree.body if not (node in classes and getattr(node, "name", "") == name)]
            outside[name].update(load for node in others for load in _loads(node))
    complaints = []
    for owner, names in fields.items():
        through = {load for method, loads in inside[owner].items() if method in outside[owner] for load in loads}
        complaints += [f"{owner}.{name} is read nowhere" for name in names if name not in outside[owner] | through]
    return complaints


def _loads(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr
