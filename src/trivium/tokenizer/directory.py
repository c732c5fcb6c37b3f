"""A tokenizer's files, as Hugging Face lays them out: read with bounds, written whole.

`tokenizer.json` holds everything that turns text into ids; `tokenizer_config.json` and `special_tokens_map.json` name
the tokens that begin, end and fill up texts; `chat_template.jinja` (or a key of the config) says how conversations are
written. `transformers.AutoTokenizer` opens what `write` leaves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.errors import UserError
from trivium.files import write_atomically

LARGEST_FILE = 256 << 20
"""Bytes; the largest published tokenizer.json is about a tenth of this."""
LARGEST_SIDE_FILE = 16 << 20
"""Bytes of tokenizer_config.json and its like."""

TOKENIZER, CONFIG, MAP, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer's files say."""

    source: Path
    """The tokenizer.json that was read, for error messages."""
    core: str
    """Content of tokenizer.json."""
    bos: str | None = None
    """The token that begins a text."""
    eos: str | None = None
    """The token that ends a text."""
    pad: str | None = None
    """The token that fills up a row."""
    adds_bos: bool | None = None
    """Whether texts are meant to begin with `bos` (None: the files do not say)."""
    chat_template: str | None = None
    """Jinja source of the chat template."""


def read(path: Path) -> TokenizerFiles:
    """Read a directory, or a tokenizer.json and the files beside it.

    Raises UserError that names the file when one is missing, too large, or not what it should be.
    """
    core_path = path / TOKENIZER if path.is_dir() else path
    folder = core_path.parent
    if not core_path.is_file():
        raise UserError(
            f"{core_path} does not exist: a tokenizer is a directory with a {TOKENIZER} (older formats become one by "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    core = _read_text(core_path, LARGEST_FILE)
    config = _read_object(folder / CONFIG)
    # The config is newer and wins; a null in it means that the token is not used.
    named = {**_read_object(folder / MAP), **config}
    adds_bos = config.get("add_bos_token")
    return TokenizerFiles(
        source=core_path,
        core=core,
        bos=_token(named, "bos_token", folder),
        eos=_token(named, "eos_token", folder),
        pad=_token(named, "pad_token", folder),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=_chat_template(folder, config),
    )


def write(folder: Path, files: TokenizerFiles, special_tokens: list[str], max_length: int | None) -> None:
    """Write the four files into `folder`, each whole or not at all (`files.source` is not used)."""
    names = {"bos_token": files.bos, "eos_token": files.eos, "pad_token": files.pad}
    named = {key: token for key, token in names.items() if token is not None}
    others = [token for token in special_tokens if token not in named.values()]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
    }
    if files.adds_bos is not None:
        config["add_bos_token"] = files.adds_bos
    if max_length is not None:
        config["model_max_length"] = max_length
    write_atomically(folder / CONFIG, _json(config))
    write_atomically(folder / MAP, _json({**named, "additional_special_tokens": others}))
    if files.chat_template is not None:
        write_atomically(folder / TEMPLATE, files.chat_template)
    else:
        (folder / TEMPLATE).unlink(missing_ok=True)
    # Last the file by which a tokenizer is known: a kill before it leaves none, not one without its special tokens.
    write_atomically(folder / TOKENIZER, files.core)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _read_text(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise UserError(f"{path} is larger than {limit >> 20} MiB, more than any tokenizer needs")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path, LARGEST_SIDE_FILE))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _token(named: Mapping[str, Any], key: str, folder: Path) -> str | None:
    """The token under `key`, which may be written as text or as an object with `content`."""
    value = named.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise UserError(f"{folder / CONFIG}: {key} must be a token's text, not {type(value).__name__}")
    return value


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template file, else the config's `chat_template`: text, or a list of which `default` is taken."""
    if (folder / TEMPLATE).is_file():
        return _read_text(folder / TEMPLATE, LARGEST_SIDE_FILE)
    value = config.get("chat_template")
    if isinstance(value, list):
        by_name = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = by_name.get("default")
    if value is not None and not isinstance(value, str):
        raise UserError(f"{folder / CONFIG}: chat_template must be text, not {type(value).__name__}")
    return value
