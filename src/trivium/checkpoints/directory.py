"""Model directories: the files that `transformers`, vLLM and llama.cpp's converter read and write.

    config.json              the shape, in the words of a published family (`config_files.py`)
    model.safetensors        the weights under their published names (or shards and model.safetensors.index.json);
                             of quantized models packed.safetensors instead (`quantized.py`)
    generation_config.json   how to generate by default
    tokenizer.json, ...      see `tokenizer/directory.py`
    README.md                what it is and how to use it

Nothing else is read: no pickle, no code. Reading is strict (every tensor expected is there, with its shape, and no
other) and bounded: the sizes a file states are compared with the file, not believed. The model is built without
memory and given the tensors of the file, so that loading needs about one copy of the weights.

Invariants its tests check: `transformers` computes equal logits from what is written here and reads the same bytes
for each tensor; a directory is written whole or not at all; every damaged or hostile directory is refused in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from trivium.checkpoints.config_files import (
    CONFIG,
    GENERATION,
    Note,
    chosen_family,
    config_values,
    generation_values,
    pooling_notes,
    read_config,
    read_scheme,
    scheme_values,
    special_ids,
)
from trivium.checkpoints.json_files import write_object
from trivium.checkpoints.model_card import model_card
from trivium.checkpoints.quantized import PackingReader, packed_model, read_packed, write_packed
from trivium.checkpoints.weights_matching import Places, find_tensors, first
from trivium.checkpoints.weights_reading import read_tensors, stored_tensors
from trivium.checkpoints.weights_writing import LARGEST_SHARD_BYTES, write_weights
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.files import is_vacant, staged_directory
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import Head, ModelConfig
from trivium.quantization.replacing import scheme_of
from trivium.quantization.schemes import Scheme
from trivium.runtime import Precision
from trivium.tokenizer.bpe import Tokenizer

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELLED = ("classification", "token_classification")


def save_model_directory(
    path: str | Path,
    model: nn.Module,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: Precision | None = None,
    generation: GenerationSettings | None = None,
    eos_ids: Sequence[int] = (),
    notes: str = "",
    family: str | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    largest_shard_bytes: int = LARGEST_SHARD_BYTES,
) -> None:
    """Write `model` as a directory of its published family; a model that is there already is replaced in one step.

    `dtype` is how weights are stored (None: a quantized model as it is, any other in fp32); `generation` how others
    generate by default, and `eos_ids` what ends a text (none: the tokenizer's end-of-text token); `notes` (markdown) go
    into the README, `extra_files` beside it by name; `family` is one that the model belongs to (None: the first that
    fits). Raises UserError when no published family has models of this shape, and when `path` holds something else.
    """
    path = replaceable(path)
    member_of = chosen_family(config, family)
    with staged_directory(path) as stage:
        ids = special_ids(member_of, tokenizer, eos_ids)
        stored = _write_model(stage, model, config, member_of, dtype, ids, largest_shard_bytes)
        if config.kind != "encoder":
            defaults = generation_values(generation or GenerationSettings(), config)
            write_object(stage / GENERATION, {**ids, **defaults})
        tokenizer.save(stage, max_length=config.max_positions)
        masked = config.kind == "encoder" and config.head == "lm"
        mask = tokenizer.mask_token if masked else None
        card = model_card(_title(path), config, member_of.model_type, stored, notes, mask or "[MASK]")
        for name, content in {"README.md": card, **(extra_files or {})}.items():
            (stage / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _write_model(
    stage: Path,
    model: nn.Module,
    config: ModelConfig,
    family: Family,
    dtype: Precision | None,
    ids: Mapping[str, int | list[int] | None],
    largest_shard_bytes: int,
) -> str:
    """Write config.json and the weights; in which format they are stored."""
    scheme = scheme_of(model)
    if dtype is None and scheme is not None and scheme.packs:
        computes_in = str(next(model.parameters()).dtype).removeprefix("torch.")
        write_object(stage / CONFIG, config_values(config, family, computes_in, ids) | scheme_values(scheme))
        write_packed(stage, model)
        return scheme.format
    stored = dtype or ("fp32" if scheme is None else cast(Precision, scheme.format))
    write_object(stage / CONFIG, config_values(config, family, _name(stored), ids))
    write_weights(stage, model, config, family, DTYPES[stored], largest_shard_bytes)
    return stored


def save_weights(
    path: str | Path,
    model: nn.Module,
    config: ModelConfig,
    *,
    dtype: Precision = "fp32",
    family: str | None = None,
    largest_shard_bytes: int = LARGEST_SHARD_BYTES,
) -> None:
    """Write config.json and the weights alone, as `save_model_directory` does: for a model without a tokenizer."""
    path = replaceable(path)
    member_of = chosen_family(config, family)
    with staged_directory(path) as stage:
        values = config_values(config, member_of, _name(dtype), special_ids(member_of, None))
        write_object(stage / CONFIG, values)
        write_weights(stage, model, config, member_of, DTYPES[dtype], largest_shard_bytes)


def load_model_directory(
    path: str | Path,
    *,
    dtype: Precision = "fp32",
    device: torch.device | str = "cpu",
    head: Head | None = None,
    labels: Iterable[str] = (),
    scheme: Scheme | None = None,
    seed: int = 0,
    note: Note = lambda line: None,
) -> tuple[Model, Tokenizer, ModelConfig]:
    """Open a model directory: the model (in evaluation mode), its tokenizer, its config; see `load_weights`."""
    path = Path(path)
    model, config = load_weights(
        path, dtype=dtype, device=device, head=head, labels=labels, scheme=scheme, seed=seed, note=note
    )
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries, but config.json says vocab_size "
            f"{config.vocab_size}: these files do not belong together"
        )
    return model, tokenizer, config


def load_weights(
    path: str | Path,
    *,
    dtype: Precision = "fp32",
    device: torch.device | str = "cpu",
    head: Head | None = None,
    labels: Iterable[str] = (),
    scheme: Scheme | None = None,
    seed: int = 0,
    note: Note = lambda line: None,
) -> tuple[Model, ModelConfig]:
    """The model (in evaluation mode) and the config of a directory that may have no tokenizer.

    Weights are converted to `dtype`, or packed by `scheme` while they are read; what a directory holds packed stays so,
    and `dtype` is then what the model computes in. `head` puts another head on the model, for the classes `labels`;
    what the files lack of it is drawn from `seed`. `note` is told, one line each, what was left out of the files and
    what of the model is new. Raises UserError that names the file and what is wrong with it.
    """
    path = Path(path)
    family, stated = read_config(path)
    config = _with_head(family, stated, head, tuple(labels))
    packed_by = read_scheme(path)
    stored = stored_tensors(path, packed=packed_by is not None)
    layers = config.layers + config.decoder_layers
    if layers > len(stored):
        raise UserError(f"{path}: config.json promises {layers} layers, the weights are {len(stored)} tensors")
    if packed_by is not None:
        if config != stated or (scheme is not None and scheme.format != packed_by.format):
            change = "given another head" if scheme is None else f"quantized again (to {scheme.format})"
            raise UserError(f"{path}: stored as {packed_by.format}, which cannot be {change}: take the original model")
        return read_packed(path, config, packed_by, stored, DTYPES[dtype], device).eval(), config
    with torch.device("meta"):
        model = build_model(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    places = find_tensors(path, family, stated, config, shapes, stored)
    for line in (*pooling_notes(path), *_notes(path, places, seed)):
        note(line)
    fresh = _fresh_head(model, config, seed, DTYPES[dtype], device) if places.fresh else {}
    if scheme is None:
        state = read_tensors(path, family, config, stored, places, DTYPES[dtype], device)
        model.load_state_dict(fresh | state, assign=True)
        return model.eval(), config
    keep = PackingReader(config, scheme, DTYPES[dtype])
    packed = {key: kept for name, tensor in fresh.items() for key, kept in keep(name, tensor).items()}
    packed |= read_tensors(path, family, config, stored, places, torch.float32, device, keep)
    return packed_model(config, scheme, packed, DTYPES[dtype]).eval(), config


def _notes(path: Path, places: Places, seed: int) -> list[str]:
    """What of the files is not in the model, and what of the model not in the files."""
    notes = [f"{path}: {name} is not there and begins as {other}" for name, other in places.stand_ins.items()]
    if places.ignored:
        notes.append(f"{path}: tensors of another head are left out: {', '.join(first(places.ignored))}")
    if places.fresh:
        notes.append(f"{path}: not there, so drawn from seed {seed}: {', '.join(first(places.fresh))}")
    return notes


def _with_head(family: Family, config: ModelConfig, head: Head | None, labels: tuple[str, ...]) -> ModelConfig:
    """The config with the head asked for; itself where it has that head already."""
    if labels and head not in LABELLED:
        raise UserError(f"labels are for head=classification or head=token_classification (head is {head})")
    if head is None or (head == config.head and labels in ((), config.labels)):
        return config
    if head in LABELLED and not labels:
        raise UserError(f"head={head} needs labels: the names of its classes")
    return family.with_head(config, head, labels)


def _fresh_head(
    model: Model, config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Initial weights of the head alone, the same as those of a whole fresh model of this seed."""
    holder = nn.ModuleDict({"head": model.head.to_empty(device="cpu")})
    initialise(holder, config, seed)
    return {name: tensor.detach().to(device, dtype) for name, tensor in holder.named_parameters()}


def replaceable(path: str | Path) -> Path:
    """The path of a model directory to write; UserError when something else is there."""
    path = Path(path)
    if (path.exists() and not path.is_dir()) or not (is_vacant(path) or (path / CONFIG).is_file()):
        raise UserError(f"{path} exists and holds no model, so it is not replaced: choose another directory")
    return path


def _title(path: Path) -> str:
    """The directory's name; of a run's `model/`, the run's."""
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def _name(dtype: Precision) -> str:
    return str(DTYPES[dtype]).removeprefix("torch.")
