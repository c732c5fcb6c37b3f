"""Which tensor of a model directory is which of the model's, and what is wrong with them.

The names of a file are brought to one form first: a file of the bare model lacks the prefix of the family, and the
first BERT files call the weight and bias of a norm gamma and beta. Then each tensor is one that the config asks for, a
copy of one, one of another head, which is left out and named, or a mistake; all mistakes are told in one message, by
name and shape.

Only headers have been read by then, so that nothing is allocated before all sizes fit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trivium.checkpoints.layouts import Shape, published_shape
from trivium.errors import UserError
from trivium.families.family import Family, Weight
from trivium.families.reading import shown
from trivium.models.config import ModelConfig

# Mistakes listed in one message; more are counted.
LISTED = 8
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    file: Path
    """Where it is."""
    shape: Shape
    """Its sizes."""
    dtype: str
    """Its type, as safetensors calls it."""


@dataclass(frozen=True)
class Places:
    """Which tensor of the files is which of the model."""

    found: dict[str, str] = field(default_factory=dict)
    """Published name -> the name in the files."""
    copies: dict[str, str] = field(default_factory=dict)
    """Name in the files -> the published name it is a copy of."""
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Published name that the files lack -> the published name whose numbers it begins with."""
    fresh: list[str] = field(default_factory=list)
    """Published names that the files may lack, and do."""
    ignored: list[str] = field(default_factory=list)
    """Names in the files that belong to another head."""


@dataclass(frozen=True)
class _Wanted:
    """What a config asks of the files."""

    shapes: Mapping[str, Shape]
    """Published name -> shape, copies included."""
    copies: Mapping[str, str]
    may_be_absent: Collection[str]
    """Tensors of the head, where it is new or there is none."""
    never_taken: Collection[str]
    """The last projection of a new head: another of equal shape would be one for other classes."""
    left_behind: Collection[str]
    """Tensors of the head that the files are for."""
    replaced: bool
    """Whether the head is another than that of the files."""


def find_tensors(
    path: Path,
    family: Family,
    stated: ModelConfig,
    config: ModelConfig,
    shapes: Mapping[str, Shape],
    stored: Mapping[str, Stored],
) -> Places:
    """The place of each tensor; UserError that lists every one missing, of another shape, or unknown.

    `stated` is the config of the directory; `config` is the same, or has another head, whose tensors may then be
    missing. `shapes` are those of our parameters.
    """
    wanted = _wanted(family, stated, config, shapes)
    names = _published_names(family, stated, config, wanted.shapes, stored)
    places = Places()
    wrong = [_place(family, wanted, places, name, names[name], tensor) for name, tensor in stored.items()]
    for copy, original in wanted.copies.items():
        if copy in places.found:  # the file may also hold the copy alone
            name = places.found.pop(copy)
            if places.found.setdefault(original, name) != name:
                places.copies[name] = original
    absent = [name for name in wanted.shapes if name not in places.found and name not in wanted.copies]
    for name, other in family.stand_ins(config).items():
        if name in absent and wanted.shapes.get(other) == wanted.shapes[name] and other in places.found:
            places.stand_ins[name] = other
            places.found[name] = places.found[other]
            absent.remove(name)
    places.fresh.extend(name for name in absent if name in wanted.may_be_absent)
    missing = [f"{name} is missing (shape {wanted.shapes[name]})" for name in absent if name not in places.fresh]
    if mistakes := [*missing, *filter(None, wrong)]:
        raise UserError(f"{path}: the weights do not fit config.json: {'; '.join(first(mistakes))}")
    return places


def is_of_head(weight: Weight) -> bool:
    """Whether a tensor is one of the head."""
    return all(name.startswith("head.") for name in weight.ours)


def first(lines: Collection[str]) -> list[str]:
    """The first few of many lines, and how many more there are."""
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return [*list(lines)[:LISTED], *more]


def _wanted(family: Family, stated: ModelConfig, config: ModelConfig, shapes: Mapping[str, Shape]) -> _Wanted:
    weights = list(family.weights(config))
    ours = [name for weight in weights for name in weight.ours]
    if sorted(ours) != sorted(shapes):
        raise ValueError(f"family {family.model_type} does not place each parameter once: {set(ours) ^ set(shapes)}")
    published = {weight.published: published_shape(weight, shapes) for weight in weights}
    copies = {copy: original for copy, original in family.copies(config).items() if copy not in published}
    replaced = config != stated
    head = [weight for weight in weights if is_of_head(weight) and (replaced or config.head == "none")]
    outputs = [weight for weight in head if weight.ours[0].startswith("head.output.") and config.head != "lm"]
    return _Wanted(
        shapes=published | {copy: published[original] for copy, original in copies.items()},
        copies=copies,
        may_be_absent={weight.published for weight in head},
        never_taken={weight.published for weight in outputs},
        left_behind={weight.published for weight in family.weights(stated) if is_of_head(weight)},
        replaced=replaced,
    )


def _place(family: Family, wanted: _Wanted, places: Places, name: str, published: str, tensor: Stored) -> str | None:
    """Note the place of one tensor; what is wrong with it."""
    shape = wanted.shapes.get(published)
    if shape is None:
        if published in wanted.left_behind or any(map(family.is_optional, (name, published))):
            places.ignored.append(name)
        elif not any(map(family.is_redundant, (name, published))):
            return f"{shown(name)} {tensor.shape} is unknown"
    elif published in wanted.never_taken:
        places.ignored.append(name)
    elif published in places.found:
        return f"{shown(name)} and {shown(places.found[published])} are the same tensor"
    elif tensor.shape != shape and wanted.replaced and published in wanted.may_be_absent:
        places.ignored.append(name)
    elif tensor.dtype not in WEIGHT_DTYPES:
        raise UserError(f"{tensor.file}: {shown(name)} is stored as {tensor.dtype}: not a weight")
    else:
        places.found[published] = name
        if tensor.shape != shape:
            return f"{shown(name)} is {tensor.shape} and must be {shape}"
    return None


def _published_names(
    family: Family, stated: ModelConfig, config: ModelConfig, wanted: Collection[str], stored: Collection[str]
) -> dict[str, str]:
    """What `config` calls each tensor of the files; an unknown name stays as it is.

    The trunk may have another name under another head.
    """
    prefix = family.base_prefix
    bare = bool(prefix) and not any(name.startswith(prefix) for name in stored)
    by_ours = {weight.ours: weight.published for weight in family.weights(config)}
    known = {name: name for name in wanted}
    for weight in family.weights(stated):
        same = weight.published if is_of_head(weight) else by_ours.get(weight.ours, weight.published)
        known.setdefault(weight.published, same)

    def published(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        newer = {"gamma": f"{stem}.weight", "beta": f"{stem}.bias"}.get(kind, name)
        forms = [form for plain in (name, newer) for form in ((plain, prefix + plain) if bare else (plain,))]
        return next((known[form] for form in forms if form in known), prefix + name if bare else name)

    return {name: published(name) for name in stored}
