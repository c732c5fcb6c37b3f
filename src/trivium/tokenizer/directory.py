"""A tokenizer's files, as Hugging Face lays them out: read with bounds, written whole.

`tokenizer.json` holds everything that turns text into ids (older directories hold it in other files: `formats.py`);
`tokenizer_config.json` and `special_tokens_map.json` name the tokens that begin, end and fill up texts;
`chat_template.jinja` (or a key of the config) says how conversations are written. `transformers.AutoTokenizer` opens
what `write` leaves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.tokenizer import formats
from trivium.tokenizer.bounded import LARGEST_FILE, LARGEST_SIDE_FILE, read_object, read_text
from trivium.tokenizer.roles import ROLE_NAMES, Roles

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
    """The file that was read, for error messages."""
    core: Callable[[], Core]
    """Makes the tokenizer of the library; raises what the library raises when the file is damaged."""
    roles: Roles
    """The tokens that the files name."""
    silent: frozenset[str]
    """The roles of which they say nothing."""
    adds_bos: bool | None = None
    """Whether texts are meant to begin with `bos` (None: the files do not say)."""
    chat_template: str | None = None
    """Jinja source of the chat template."""


def read(path: Path) -> TokenizerFiles:
    """Read a directory, or one tokenizer file and the files beside it.

    Raises UserError that names the file when one is missing, too large, or not what it should be.
    """
    folder = path if path.is_dir() else path.parent
    config = read_object(folder / CONFIG)
    # The config is newer and wins; a null in it means that the token is not used.
    named = {**read_object(folder / MAP), **config}
    source = path / TOKENIZER if path.is_dir() else path
    if source.is_file() and source.suffix == ".json" and source.name not in formats.NAMES:
        text = read_text(source, LARGEST_FILE)

        def core() -> Core:
            return Core.from_str(text)
    else:
        found = formats.find(path, named)
        if found is None:
            raise UserError(
                f"{source} does not exist: a tokenizer is a directory with a {TOKENIZER} (older formats become one by "
                "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        source, core = found
    adds_bos = config.get("add_bos_token")
    return TokenizerFiles(
        source=source,
        core=core,
        roles=Roles(**{role: _token(named, f"{role}_token", folder) for role in ROLE_NAMES}),
        silent=frozenset(role for role in ROLE_NAMES if f"{role}_token" not in named),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=_chat_template(folder, config),
    )


def write(
    folder: Path,
    core: str,
    roles: Roles,
    *,
    adds_bos: bool | None,
    chat_template: str | None,
    special_tokens: Sequence[str],
    max_length: int | None,
) -> None:
    """Write the four files into `folder`, each whole or not at all; `core` is the content of tokenizer.json."""
    named = {f"{role}_token": token for role, token in roles.named().items()}
    # What has always been written is written when empty too, as other readers take a default for what is missing.
    names = {"bos_token": None, "eos_token": None, "pad_token": None, **named}
    others = [token for token in special_tokens if token not in named.values()]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
    }
    if adds_bos is not None:
        config["add_bos_token"] = adds_bos
    if max_length is not None:
        config["model_max_length"] = max_length
    write_atomically(folder / CONFIG, _json(config))
    write_atomically(folder / MAP, _json({**named, "additional_special_tokens": others}))
    if chat_template is not None:
        write_atomically(folder / TEMPLATE, chat_template)
    else:
        (folder / TEMPLATE).unlink(missing_ok=True)
    # Last the file by which a tokenizer is known: a kill before it leaves none, not one without its special tokens.
    write_atomically(folder / TOKENIZER, core)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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
        return read_text(folder / TEMPLATE, LARGEST_SIDE_FILE)
    value = config.get("chat_template")
    if isinstance(value, list):
        by_name = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = by_name.get("default")
    if value is not None and not isinstance(value, str):
        raise UserError(f"{folder / CONFIG}: chat_template must be text, not {type(value).__name__}")
    return value
