"""What stands around the sources: pins, licence, documents whose commands exist and run, and nothing private."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trivium
from house import verbs
from trivium.cli import VERBS, main

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
CHEAP = ("trivium --help", "trivium --version", "trivium doctor")
"""Commands of the documents that are really run (`doctor` for a moment only)."""

# Where this project happened to be written, people's home folders, and other places that mean nothing to a reader.
# (Pieces, so that this file does not hold what it looks for.)
PRIVATE = re.compile("|".join(("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", r"\b(?:10|192\.168)(?:\.\d{1,3}){2,3}\b")))


def texts() -> dict[str, str]:
    """Every text file that is ours: what git tracks or would track; everything but build outputs without git."""
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git to know which files are ours")
    found = {}
    for name in filter(None, names):
        path = REPOSITORY / name
        if path.is_file() and path.stat().st_size < 1 << 20:
            try:
                found[name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return found


def private_words(files: dict[str, str]) -> list[str]:
    return [f"{name}: {match.group()}" for name, text in files.items() for match in PRIVATE.finditer(text)]


def test_nothing_private() -> None:
    assert not private_words(texts())


def test_the_control_something_private_is_seen() -> None:
    assert private_words({"README.md": "see " + "/wo" + "rk/main"})
    assert private_words({"README.md": "http://" + "10.1." + "2.3:8000"})
    assert not private_words({"README.md": "python 3.10.1, torch 2.13.0, 10.5 GB, see runs/quickstart"})


# ---------------------------------------------------------------------------------------------------- pins and licence


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_is_pinned_within_its_range() -> None:
    optional = [
        each for extra in ("hub", "tensorboard", "test", "dev") for each in PROJECT["optional-dependencies"][extra]
    ]
    for line in [*PROJECT["dependencies"], *optional]:
        requirement = Requirement(line)
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}, but constraints.txt has {version}"


def test_pins_fit_every_machine() -> None:
    assert all("+" not in version for version in pins().values()), "a local version exists on one machine only"
    assert pins()["torch"] == "2.13.0"


def test_one_version() -> None:
    assert PROJECT["version"] == trivium.__version__
    assert f"## {trivium.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_licence_is_the_standard_text() -> None:
    text = (REPOSITORY / "LICENSE").read_text().strip()
    assert "Apache License" in text.splitlines()[0]
    words = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
    assert words == "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645"


def test_continuous_integration_runs_what_people_run() -> None:
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()
    assert "make test" in (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111


def test_long_results_are_kept(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test(record_property):\n    record_property('seed', 7)\n")
    results = tmp_path / "long.json"
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "long_results",
        "--long-results",
        str(results),
        "-c",
        "/dev/null",
        str(tmp_path),
    ]
    environment = {"PYTHONPATH": str(REPOSITORY / "tests"), "PATH": ""}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert [(proof["outcome"], proof["seed"]) for proof in found["proofs"]] == [("passed", 7)]
    assert found["machine"]["usable_cores"] >= 1


# ------------------------------------------------------------------------------------------------- documented commands


def commands(text: str) -> list[str]:
    """The commands of a document's `sh` blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def wrong_with(command: str) -> str | None:
    """Why a documented command cannot work; None when it can (or is not one of ours)."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        known = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return next((f"make has no target {target}" for target in targets if target not in known), None)
    if words[0] != "trivium" or len(words) == 1 or words[1] in ("--help", "--version"):
        return None
    if words[1] not in VERBS:
        return f"there is no verb {words[1]}"
    several = verbs.subverbs(words[1])
    if several and words[2:3] not in [[name] for name in (*several, "--help")]:
        return f"trivium {words[1]} wants one of {', '.join(several)}"
    verb = words[1:3] if several and words[2] in several else words[1:2]
    done = subprocess.run([sys.executable, "-m", "trivium", *verb, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = re.findall(r"-[-\w]+", done.stdout)
    named = {word.partition("=")[0] for word in words if word.startswith("-")}
    return next((f"there is no option {option}" for option in named if option not in known), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_exist(document: Path) -> None:
    complaints = [f"{command}: {wrong}" for command in commands(document.read_text()) if (wrong := wrong_with(command))]
    assert not complaints


@pytest.mark.parametrize(
    "command",
    [
        "trivium quickstrat",
        "trivium quickstart --minuets 5",
        "trivium tokenizer learn x",
        "make quickly",
        "trivium metric",
    ],
)
def test_the_control_commands_that_do_not_exist_are_seen(command: str) -> None:
    assert commands(f"text\n```sh\n# comment\n$ {command}\n```\n") == [command]
    assert wrong_with(command)


def test_cheap_documented_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    documented = {command.partition(" >")[0] for path in DOCUMENTS for command in commands(path.read_text())}
    run = [command for command in documented if command.startswith(CHEAP)]
    assert run, "the README shows at least one of them"
    for command in run:
        words = shlex.split(command, comments=True)[1:]
        assert main([*words, *(["--seconds", "0.2"] if words[0] == "doctor" else [])]) == 0, command
    assert capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_python_names_exist(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("tv", "trivium")
            ):
                assert node.attr in trivium.__all__, f"{document.name}: tv.{node.attr}"


def test_documented_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
