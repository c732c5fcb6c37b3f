"""The config of whatever a user calls a model, and nothing else of it: no weights, no tokenizer.

A directory, a run directory, an adapter (the shape of its base), a bare config file, a GGUF file (its header), a
built-in name, or a hub id, of which config.json alone is fetched.

Invariant its test checks: none of these reads a weight; torch is imported for GGUF files and adapters only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trivium.checkpoints.config_files import CONFIG, read_config, read_scheme
from trivium.checkpoints.resolve import ADAPTER, BUILT_IN, GGUF, HUB_ID, resolve_model
from trivium.errors import UserError
from trivium.models.config import ModelConfig


class Described(NamedTuple):
    """What config.json says of a model."""

    config: ModelConfig
    stored_as: str | None
    """The format that its matrices are packed in; None: they are not."""


def described(name_or_path: str | Path) -> Described:
    """The shape of a model; UserError that says what is wrong with the name or the file."""
    path = Path(name_or_path).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _in(path)
    hub = HUB_ID.fullmatch(str(name_or_path))
    is_local = path.exists() or str(name_or_path) in BUILT_IN or (hub is not None and Path(hub[1]).is_dir())
    if hub is not None and hub[3] is None and not is_local:
        return _in(_of_repository(f"{hub[1]}/{hub[2]}"))
    found = resolve_model(name_or_path)
    if found.suffix == GGUF:
        from trivium.checkpoints.gguf_reading import plan_reading  # torch comes with it

        return Described(plan_reading(found).config, None)
    if not (found / CONFIG).is_file() and (found / ADAPTER).is_file():
        from trivium.checkpoints.adapter_reading import described_adapter  # torch comes with it

        config, base = described_adapter(found)
        return _in(base)._replace(config=config) if base.is_dir() else Described(config, None)
    return _in(found)


def _in(path: Path) -> Described:
    scheme = read_scheme(path)
    return Described(read_config(path)[1], None if scheme is None else scheme.format)


def _of_repository(repository: str) -> Path:
    """The config.json of a hub repository, from the local copy where the hub cannot be asked."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"there is no directory {repository}; to read it from the Hugging Face hub, install trivium[hub]"
        ) from None
    try:
        return Path(hf_hub_download(repository, CONFIG))
    except (OSError, ValueError) as error:  # the errors of huggingface_hub derive from these two
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no directory {repository}, and the Hugging Face hub did not give its {CONFIG}: {reason}"
        ) from None
