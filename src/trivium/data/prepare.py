"""From data settings to token shards: read, split, tokenize once, and keep under a name made from the contents.

Shards lie in `<cache>/<part>-<fingerprint>`, where the fingerprint covers the bytes of every source file, the tokenizer
and each setting that matters; so runs share them exactly when they may, and nothing stale is ever used. (For a hub set
the fingerprint covers its id only: delete the cache to read it anew.)
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trivium.data.corpus import STANDARD_LIBRARY, standard_library_files, standard_library_root, standard_library_rows
from trivium.data.locations import HubSet, locate
from trivium.data.readers import read_rows
from trivium.data.row import Row
from trivium.data.rows import text_of
from trivium.data.settings import DataSettings
from trivium.data.shards import Shards, build_shards, fingerprint_of
from trivium.data.split import is_held_out, split_tail
from trivium.data.text_encoder import TextEncoder
from trivium.errors import UserError
from trivium.files import sha256_of_file
from trivium.progress import SILENT, Progress

Part = Literal["all", "train", "held-out"]


@dataclass(frozen=True)
class Prepared:
    """Tokenized text, ready to be packed into rows."""

    train: tuple[tuple[Shards, float | None], ...]
    """Each training source with its weight (None for all: in proportion to their sizes)."""
    held_out: Shards | None
    """What is never trained on; None where nothing is held out."""


def prepare(
    settings: DataSettings,
    tokenizer: TextEncoder,
    cache_directory: Path | None = None,
    progress: Progress = SILENT,
) -> Prepared:
    """The shards of `settings`, found in the cache or built there (`cache_directory` overrides the setting).

    Safe to call from several processes at once: one of them builds. Raises a UserError when the training text or the
    held-out text is empty.
    """
    cache = cache_directory or cache_of(settings)

    def build(paths: Sequence[str], part: Part, title: str) -> Shards:
        made_from = _made_from(settings, paths, part)
        return build_shards(
            texts(settings, paths, part),
            tokenizer,
            cache / f"{title}-{fingerprint_of(made_from, tokenizer)[:16]}",
            made_from=made_from,
            verify=settings.verify_cache,
            description=f"{title} text",
            progress=progress,
        )

    fraction = settings.resolved_held_out_fraction
    train = []
    for source in settings.train:
        shards = build([source.path], "train" if fraction else "all", "train")
        if not shards.num_tokens:
            raise UserError(f"{source.path}: no text is left to train on")
        train.append((shards, source.weight))
    paths, part = held_out_part(settings)
    if not paths:
        return Prepared(tuple(train), None)
    held_out = build(paths, part, "held-out")
    if not held_out.num_tokens:
        raise UserError(
            f"no text is held out: a share of {fraction} of so few documents comes to none; set "
            "data.held_out_by=tail, a larger data.held_out_fraction, data.validation=FILE, or data.held_out_fraction=0"
        )
    return Prepared(tuple(train), held_out)


def training_texts(settings: DataSettings) -> Iterator[str]:
    """The documents that are trained on, source after source: what a tokenizer may learn from."""
    part: Part = "train" if settings.resolved_held_out_fraction else "all"
    return texts(settings, [source.path for source in settings.train], part)


def held_out_texts(settings: DataSettings) -> Iterator[str]:
    """The documents that are never trained on, in order; none where nothing is held out."""
    return texts(settings, *held_out_part(settings))


def held_out_part(settings: DataSettings) -> tuple[Sequence[str], Part]:
    """The paths of held-out text, and which part of it."""
    if settings.validation is not None:
        return settings.validation, "all"
    fraction = settings.resolved_held_out_fraction
    return [source.path for source in settings.train] if fraction else [], "held-out"


def texts(settings: DataSettings, paths: Sequence[str], part: Part) -> Iterator[str]:
    """The documents at `paths`, or the part of them that is trained on or held out."""
    documents = itertools.chain.from_iterable(source_texts(settings, path) for path in paths)
    if part == "all":
        return documents
    return _split(documents, settings, part)


def source_texts(settings: DataSettings, path: str) -> Iterator[str]:
    """The documents of one source, up to the limits of the settings."""
    num_bytes = 0
    for row in itertools.islice(source_rows(path, settings), settings.max_documents):
        text = text_of(row, "text" if row.values.keys() == {"text"} else settings.text_key)
        yield text
        if settings.max_bytes is not None:
            num_bytes += len(text.encode("utf-8"))
            if num_bytes >= settings.max_bytes:
                return


def source_rows(path: str, settings: DataSettings) -> Iterator[Row]:
    """The rows of one source: the standard library, or whatever `read_rows` reads."""
    if path == STANDARD_LIBRARY:
        return standard_library_rows()
    return read_rows(path, text_layout=settings.text_layout)


def _split(documents: Iterable[str], settings: DataSettings, part: Part) -> Iterator[str]:
    fraction = settings.resolved_held_out_fraction
    for text in documents:
        if settings.held_out_by == "tail":
            head, tail = split_tail(text, fraction)
            yield tail if part == "held-out" else head
        elif is_held_out(text, fraction) == (part == "held-out"):
            yield text


def _made_from(settings: DataSettings, paths: Sequence[str], part: Part) -> dict[str, Any]:
    """Everything but the tokenizer that decides which documents `texts` gives."""
    limits = settings.model_dump(include={"text_layout", "text_key", "max_documents", "max_bytes"})
    split = {} if part == "all" else {"by": settings.held_out_by, "fraction": settings.resolved_held_out_fraction}
    return {"part": part, "split": split, "limits": limits, "sources": [described(path) for path in paths]}


def described(path: str) -> dict[str, Any]:
    """A source by its contents: number, size and hash of its files, or the hub id."""
    if path == STANDARD_LIBRARY:
        files, root = standard_library_files(), standard_library_root()
    else:
        found = locate(path)
        if isinstance(found, HubSet):
            return {"hub": found.name, "config": found.config, "split": found.split}
        files, root = found, Path(os.path.commonpath([file.parent for file in found]))
    digest, num_bytes = hashlib.sha256(), 0
    for file in files:
        size = file.stat().st_size
        num_bytes += size
        digest.update(f"{file.relative_to(root).as_posix()}\0{size}\0{sha256_of_file(file)}\n".encode())
    return {"files": len(files), "bytes": num_bytes, "sha256": digest.hexdigest()}


def cache_of(settings: DataSettings) -> Path:
    """Where the shards of these settings are kept."""
    if settings.cache_directory is not None:
        return Path(settings.cache_directory).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trivium" / "shards"
