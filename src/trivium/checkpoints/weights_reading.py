"""The tensors of a model directory: listed from the headers of its safetensors files, and read one by one.

Nothing but safetensors is opened, no link is followed out of the directory, and safetensors checks the sizes a header
states against the size of the file. Which tensor is which: `weights_matching.py`. Invariant (tested): reading needs
about one copy of the weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trivium.checkpoints.json_files import read_object
from trivium.checkpoints.layouts import split
from trivium.checkpoints.weights_matching import Places, Stored
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.reading import shown
from trivium.models.config import ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED_WEIGHTS = "packed.safetensors"
"""A name that transformers does not look for: it would pass over what it does not know and draw weights at random."""
LARGEST_INDEX_BYTES = 64 << 20


Keep = Callable[[str, Tensor], Mapping[str, Tensor]]
"""From a parameter of ours and its tensor to what is kept of it, by name."""


def as_it_is(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """The tensor itself."""
    return {name: tensor}


def stored_tensors(path: Path, *, packed: bool = False) -> dict[str, Stored]:
    """All tensors of a directory by name, from the headers of its files; `packed`: of a quantized one."""
    tensors: dict[str, Stored] = {}
    for shard in [_packed_file(path)] if packed else _weight_files(path):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name in tensors:
                        raise UserError(f"{shard}: {shown(name)} is also in another file")
                    part = file.get_slice(name)
                    tensors[name] = Stored(shard, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard}: not a whole safetensors file: {error}") from None
    return tensors


def read_tensors(
    path: Path,
    family: Family,
    config: ModelConfig,
    stored: Mapping[str, Stored],
    places: Places,
    dtype: torch.dtype,
    device: torch.device | str,
    keep: Keep = as_it_is,
) -> dict[str, Tensor]:
    """Our parameters by name, converted tensor by tensor; UserError for a copy that is none.

    `keep` is given each parameter and says what of it is kept, under which names.
    """
    weights = {weight.published: weight for weight in family.weights(config)}
    by_file: dict[Path, list[str]] = defaultdict(list)
    for published, name in places.found.items():
        by_file[stored[name].file].append(published)
    state: dict[str, Tensor] = {}
    for shard, names in by_file.items():
        # A mapped file stays in memory as far as it was read: what is not kept is read through mappings of its own.
        for some in [names] if keep is as_it_is else [[name] for name in names]:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for published in some:
                    tensor = file.get_tensor(places.found[published]).to(dtype=dtype)
                    if published in places.stand_ins:  # two parameters from one tensor must not share its memory
                        tensor = tensor.clone()
                    parts = split(weights[published], tensor, config)
                    for name, part in zip(weights[published].ours, parts, strict=True):
                        state |= {key: kept.to(device) for key, kept in keep(name, part).items()}
            del tensor, parts
    for copy, original in places.copies.items():
        _check_copy(path, family, config, stored, copy, places.found[original], original)
    return state


def _check_copy(
    path: Path,
    family: Family,
    config: ModelConfig,
    stored: Mapping[str, Stored],
    copy: str,
    found: str,
    original: str,
) -> None:
    """Refuse a copy of a tied tensor whose numbers are others."""
    with safe_open(stored[copy].file, "pt") as one, safe_open(stored[found].file, "pt") as two:
        pairs = zip(one.get_tensor(copy).split(4096), two.get_tensor(found).split(4096), strict=True)
        same = all(torch.equal(left.double(), right.double()) for left, right in pairs)
    if not same:
        untied = {weight.published for weight in family.weights(config.changed(tied_embeddings=False))}
        cure = ": set tie_word_embeddings to false" if copy in untied else ""
        raise UserError(f"{path}: by config.json {copy} is a copy of {original}, but its numbers differ{cure}")


def _packed_file(path: Path) -> Path:
    """The file of a quantized directory."""
    file = path / PACKED_WEIGHTS
    if not file.is_file():
        wrong = "not a regular file" if file.exists() else "missing, though config.json says that weights are packed"
        raise UserError(f"{file}: {wrong}")
    return file


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory, each checked to be a regular file that belongs to it."""
    if (path / WEIGHTS).exists():
        files = [path / WEIGHTS]
    elif (path / INDEX).exists():
        names = read_object(path / INDEX, LARGEST_INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{path / INDEX}: weight_map must map each tensor to a file")
        files = [_shard(path, name) for name in sorted({str(name) for name in names.values()})]
    elif any(path.glob("*.bin")):
        raise UserError(
            f"{path}: the weights are a pickle (.bin), which could run code and is never read; convert them once: "
            f"AutoModel.from_pretrained({str(path)!r}).save_pretrained(...) of transformers"
        )
    else:
        raise UserError(f"{path}: no weights: {WEIGHTS} or {INDEX} is missing")
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file}: " + ("not a regular file" if file.exists() else "missing, but the index names it")
            )
    return files


def _shard(path: Path, name: str) -> Path:
    """The file of a shard: a plain name, and no link out of the directory (a hub cache may link to its own blobs)."""
    if not re.fullmatch(r"[\w][\w.\-]*\.safetensors", name, re.ASCII):
        raise UserError(f"{path / INDEX}: {shown(name)} is not the name of a safetensors file in this directory")
    home = path.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    if not (path / name).resolve().is_relative_to(home):
        raise UserError(f"{path / name}: links to a file outside the directory")
    return path / name
