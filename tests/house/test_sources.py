"""The sources keep the house rules; each rule is shown to catch a file that breaks it."""

from __future__ import annotations

import textwrap

import pytest

from house import rules

SOURCES = rules.sources()
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * rules.FUNCTION_LINES


def listed(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)


def test_imports_point_down_the_ladder() -> None:
    complaints = rules.ladder(SOURCES)
    assert not complaints, listed(complaints)


def test_no_module_needs_one_that_needs_it() -> None:
    complaints = rules.cycles(SOURCES)
    assert not complaints, listed(complaints)


@pytest.mark.parametrize("rule", [rules.sizes, rules.refused_words, rules.undocumented])
def test_every_file_keeps(rule) -> None:
    complaints = [complaint for module, text in SOURCES.items() for complaint in rule(module, text)]
    assert not complaints, listed(complaints)


def test_every_folder_of_the_sources_is_seen() -> None:
    folders = {path.name for path in rules.SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {rules.folder(module) for module in SOURCES} - {""}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("trivium.models.layers", "import trivium.training.loop"),
        ("trivium.models.layers", "from trivium.tokenizer import bpe"),
        ("trivium.models.layers", "def f():\n    from trivium.data.batch import Batch"),
        ("trivium.models.layers", "from ..data import batch"),
        ("trivium.models.layers", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trivium.cli"),
        ("trivium.models.layers", "from trivium import Tokenizer"),
        ("trivium.models.layers", "import trivium"),
        ("trivium.config", "from trivium.metrics.perplexity import perplexity"),
        ("trivium.config", "from trivium import models"),
        ("trivium.surprise.layers", "import torch"),
        ("trivium.cli.verb", "import trivium.surprise.layers"),
    ],
)
def test_the_ladder_catches(module: str, text: str) -> None:
    others = ("trivium", "trivium.models", "trivium.tokenizer.bpe", "trivium.training.loop", "trivium.data.batch")
    assert rules.ladder({**dict.fromkeys(others, ""), module: text})


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("trivium.models.layers", "from trivium.models.config import ModelConfig\nfrom .config import Mlp"),
        ("trivium.models.layers", "from trivium import yaml_text, __version__\nimport torch"),
        ("trivium.cli", "from trivium import __version__\nimport trivium.training.loop"),
        ("trivium", "def load():\n    from trivium.checkpoints.bundle import load"),
        ("trivium.config", "from trivium.errors import UserError"),
    ],
)
def test_the_ladder_allows(module: str, text: str) -> None:
    others = ("trivium", "trivium.yaml_text", "trivium.models.config", "trivium.errors", "trivium.training.loop")
    assert not rules.ladder({**dict.fromkeys(others, ""), module: text})


def test_cycles_are_caught() -> None:
    bad = {"trivium.models.a": "from trivium.models import b", "trivium.models.b": "import trivium.models.a"}
    assert rules.cycles({"trivium.models": "", **bad})
    later = {
        "trivium.models.a": "def f():\n    from trivium.models import b",
        "trivium.models.b": bad["trivium.models.b"],
    }
    assert not rules.cycles({"trivium.models": "", **later})


def test_sizes_are_caught() -> None:
    assert rules.sizes("trivium.x", "x = 1\n" * (rules.FILE_LINES + 1))
    assert rules.sizes("trivium.x", LONG_FUNCTION)
    assert rules.sizes("trivium.x", "class A:\n" + textwrap.indent(LONG_FUNCTION, "    "))
    assert not rules.sizes("trivium.x", LONG_FUNCTION.removesuffix("    x = 1\n"))
    assert not rules.sizes("trivium.x", "x = 1\n" * rules.FILE_LINES)


@pytest.mark.parametrize(
    "text",
    [
        "print('x')",
        "def f():\n    global x\n    x = 1",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import torch\nread = torch.load",
        "import torch\ntorch.save({}, 'x')",
        "eval('1')",
        "exec('1')",
        "compile('1', 'x', 'eval')",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import datasets\ndatasets.load_dataset('x', trust_remote_code=flag)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "import transformers",
        "def f():\n    from transformers import AutoModel",
        "import importlib\nimportlib.import_module('torch')",
    ],
)
def test_refused_words_are_caught(text: str) -> None:
    assert rules.refused_words("trivium.models.layers", text)


def test_refused_names_are_caught_and_innocent_ones_are_not() -> None:
    assert rules.refused_words("trivium.utils", "")
    assert rules.refused_words("trivium.models.helpers", "")
    innocent = "import re, torch\nre.compile('x')\nmodel.eval()\ntorch.compile(model)\nf(allow_pickle=False)"
    assert not rules.refused_words("trivium.models.layers", innocent)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "'''Doc.'''\ndef f(): ...",
        "'''Doc.'''\nclass A: ...",
        "'''Doc.'''\nclass A:\n    '''A.'''\n    def f(self): ...",
    ],
)
def test_missing_docstrings_are_caught(text: str) -> None:
    assert rules.undocumented("trivium.x", text)
    assert not rules.undocumented("trivium.x", "'''Doc.'''\ndef _f(): ...\nclass _A:\n    def f(self): ...")


def test_unread_settings_are_caught() -> None:
    defined = "class A(Settings):\n    x: int = 1\n    @property\n    def twice(self):\n        return 2 * self.x"
    fields = {"A": ["x"]}
    assert rules.unread_settings(fields, {"trivium.a": defined})
    assert rules.unread_settings(fields, {"trivium.a": defined, "trivium.b": "a.x = 1"})
    assert not rules.unread_settings(fields, {"trivium.a": defined, "trivium.b": "y = a.x"})
    assert not rules.unread_settings(fields, {"trivium.a": defined, "trivium.b": "y = a.twice"})
