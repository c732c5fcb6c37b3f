"""From what a user calls a model to the directory that holds it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trivium.errors import UserError, nearest

# What is fetched of a hub repository: never pickles, never code.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "README.md"]


def resolve_model(name_or_path: str | Path) -> Path:
    """The model directory that `name_or_path` means.

    A model directory; a run directory (its `model/`); or the id of a Hugging Face hub repository, which is fetched or
    found in the local cache (`HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` are honoured). Raises UserError that names what
    exists nearby.
    """
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111 (leaves the home of an unknown user alone)
    if path.is_dir():
        for candidate in (path, path / "model"):
            if (candidate / "config.json").is_file():
                return candidate
        unfinished = " (a run that has not finished?)" if (path / "checkpoints").is_dir() else ""
        raise UserError(f"{path} is not a model: it holds no config.json, and no model/config.json either{unfinished}")
    if path.exists():
        raise UserError(f"{path} is a file; a model is a directory with config.json, model.safetensors, tokenizer.json")
    if _looks_like_hub_id(str(name_or_path)):
        return _from_hub(str(name_or_path))
    raise UserError(f"there is no model {name_or_path}{_nearby(path)}")


def _looks_like_hub_id(name: str) -> bool:
    """`owner/name`, unless `owner` is a folder here: then a path was meant."""
    parts = re.fullmatch(r"([A-Za-z0-9][\w\-.]*)/([A-Za-z0-9][\w\-.]*)", name, re.ASCII)
    return parts is not None and not Path(parts[1]).is_dir()


def _nearby(path: Path) -> str:
    """The existing directory with the most similar name, as a cure."""
    folder = path.parent
    if not folder.is_dir():
        return f": the folder {folder} does not exist"
    near = nearest(path.name, (other.name for other in folder.iterdir() if other.is_dir()))
    return f"; did you mean {folder / near}?" if near else ": give a model directory, a run directory or a hub id"


def _from_hub(name: str) -> Path:
    """The local snapshot of a hub repository."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"there is no directory {name}; to fetch it from the Hugging Face hub, install trivium[hub]"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:  # the errors of huggingface_hub derive from these two
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"there is no directory {name}, and the Hugging Face hub did not give it: {reason}") from None
