"""Model directories: the files that `transformers`, vLLM and llama.cpp's converter read and write.

    config.json              the shape, in the words of a published family
    model.safetensors        the weights under their published names (or shards and model.safetensors.index.json)
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

import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trivium.checkpoints.model_card import model_card
from trivium.errors import UserError, nearest
from trivium.families import FAMILIES, family_for
from trivium.families.family import Family, shown
from trivium.files import is_vacant, staged_directory
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.models.transformer import Decoder, build_model
from trivium.runtime import Precision
from trivium.tokenizer.bpe import Tokenizer

CONFIG, WEIGHTS, INDEX, GENERATION = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_CONFIG_BYTES = 1 << 20
LARGEST_INDEX_BYTES = 64 << 20
# Mistakes listed in one message; more are counted.
LISTED = 8


def save_model_directory(
    path: str | Path,
    model: nn.Module,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: Precision = "fp32",
    generation: GenerationSettings | None = None,
    eos_ids: Sequence[int] = (),
    notes: str = "",
) -> None:
    """Write `model` as a directory of its published family; a model that is there already is replaced in one step.

    `dtype` is how weights are stored; `generation` how others generate by default, and `eos_ids` what ends a text
    (none: the tokenizer's end-of-text token); `notes` (markdown) go into the README. Raises UserError when no published
    family has models of this shape, and when `path` holds something else.
    """
    path = Path(path)
    if (path.exists() and not path.is_dir()) or not (is_vacant(path) or (path / CONFIG).is_file()):
        raise UserError(f"{path} exists and holds no model, so it is not replaced: choose another directory")
    family = family_for(config)
    state = {name: _stored(tensor, DTYPES[dtype]) for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: t.shape for name, t in expected.items()}:
        raise ValueError("the model is not one of its config: merge adapters and take the model out of its wrappers")
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    if eos_ids:
        ids["eos_token_id"] = list(eos_ids) if len(eos_ids) > 1 else eos_ids[0]
    settings = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.write_config(config),
        **ids,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "use_cache": True,
    }
    with staged_directory(path) as stage:
        _write_json(stage / CONFIG, settings)
        _write_json(stage / GENERATION, {**ids, **_generation_keys(generation or GenerationSettings())})
        try:
            save_file(
                {family.to_published(name): tensor for name, tensor in state.items()},
                stage / WEIGHTS,
                metadata={"format": "pt"},
            )
        except SafetensorError as error:
            raise UserError(f"{path}: the weights could not be written: {error}") from error
        tokenizer.save(stage, max_length=config.max_positions)
        (stage / "README.md").write_text(
            model_card(_title(path), config, family.model_type, dtype, notes), encoding="utf-8"
        )


def load_model_directory(
    path: str | Path, *, dtype: Precision = "fp32", device: torch.device | str = "cpu"
) -> tuple[Decoder, Tokenizer, ModelConfig]:
    """Open a model directory: the model (in evaluation mode), its tokenizer, its config.

    Weights are converted to `dtype`. Raises UserError that names the file and what is wrong with it.
    """
    path = Path(path)
    model, config = load_weights(path, dtype=dtype, device=device)
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries, but config.json says vocab_size "
            f"{config.vocab_size}: these files do not belong together"
        )
    return model, tokenizer, config


def load_weights(
    path: Path, *, dtype: Precision = "fp32", device: torch.device | str = "cpu"
) -> tuple[Decoder, ModelConfig]:
    """The model and the config of a directory that may have no tokenizer."""
    family, config = read_config(path)
    shards = _weight_files(path)
    stored = _stored_shapes(shards)
    if config.layers > len(stored):
        raise UserError(f"{path}: config.json promises {config.layers} layers, the weights are {len(stored)} tensors")
    with torch.device("meta"):
        model = build_model(config)
    ours = {family.to_published(name): name for name in model.state_dict()}
    shapes = {family.to_published(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    copy_of_embedding = family.to_published("head.weight") if config.tied_embeddings else None
    _check_tensors(path, family, shapes, stored, copy_of_embedding)
    state: dict[str, Tensor] = {}
    head: Tensor | None = None
    for shard in shards:
        with safe_open(shard, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in ours:
                    state[ours[name]] = file.get_tensor(name).to(device=device, dtype=DTYPES[dtype])
                elif name == copy_of_embedding:
                    head = file.get_tensor(name).to(device=device, dtype=DTYPES[dtype])
    if head is not None and not torch.equal(head, state["embedding.weight"]):
        raise UserError(
            f"{path}: config.json says tie_word_embeddings, but {copy_of_embedding} differs from the embeddings: "
            "set tie_word_embeddings to false"
        )
    model.load_state_dict(state, assign=True)
    return model.eval(), config


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The family and the shape that config.json states."""
    file = path / CONFIG
    values = _read_json(file, LARGEST_CONFIG_BYTES)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = nearest(shown(model_type), FAMILIES)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{file}: model_type is {shown(model_type)}; supported are {', '.join(FAMILIES)}{hint}")
    return FAMILIES[model_type], FAMILIES[model_type].read_config(values, str(file))


def read_eos_ids(path: Path) -> tuple[int, ...]:
    """The ids that end a text by generation_config.json, else by config.json; empty when neither says."""
    for name in (GENERATION, CONFIG):
        file = path / name
        if name == GENERATION and not file.exists():
            continue
        ids = _read_json(file, LARGEST_CONFIG_BYTES).get("eos_token_id")
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(number) is int and number >= 0 for number in ids):
                raise UserError(f"{file}: eos_token_id must be an id or a list of ids")
            return tuple(ids)
    return ()


def _title(path: Path) -> str:
    """The directory's name; of a run's `model/`, the run's."""
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def _generation_keys(settings: GenerationSettings) -> dict[str, Any]:
    """The settings in the words of generation_config.json."""
    keys: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "do_sample": not settings.greedy}
    if not settings.greedy:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            keys[name] = getattr(settings, name)
    if settings.repetition_penalty != 1.0:
        keys["repetition_penalty"] = settings.repetition_penalty
    return keys


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path, largest_bytes: int) -> dict[str, Any]:
    """A JSON object from a regular file of bounded size."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(largest_bytes + 1)
        if len(content) > largest_bytes:
            raise UserError(f"{path} is larger than {largest_bytes} bytes, which no such file needs to be")
        values = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return values


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory, each checked to be a regular file that belongs to it."""
    if (path / WEIGHTS).exists():
        files = [path / WEIGHTS]
    elif (path / INDEX).exists():
        names = _read_json(path / INDEX, LARGEST_INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{path / INDEX}: weight_map must map each tensor to a file")
        files = [_shard(path, name) for name in sorted({str(name) for name in names.values()})]
    elif any(path.glob("*.bin")):
        raise UserError(
            f"{path}: the weights are a pickle (.bin), which could run code and is never read; convert them once: "
            f"AutoModelForCausalLM.from_pretrained({str(path)!r}).save_pretrained(...) of transformers"
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


def _stored_shapes(shards: list[Path]) -> dict[str, tuple[int, ...]]:
    """Published name and shape of each tensor, from the headers of the files (whose sizes safetensors checks)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name in shapes:
                        raise UserError(f"{shard}: {shown(name)} is also in another file")
                    part = file.get_slice(name)
                    if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                        raise UserError(f"{shard}: {shown(name)} is stored as {part.get_dtype()}: not a weight")
                    shapes[name] = tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard}: not a whole safetensors file: {error}") from None
    return shapes


def _check_tensors(
    path: Path,
    family: Family,
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    copy_of_embedding: str | None,
) -> None:
    """Refuse unless the tensors of the files are those of the model; all differences in one message."""
    mistakes = [f"{name} is missing (shape {shape})" for name, shape in expected.items() if name not in stored]
    mistakes += [
        f"{name} is {stored[name]} and must be {shape}"
        for name, shape in expected.items()
        if stored.get(name, shape) != shape
    ]
    mistakes += [
        f"{shown(name)} {shape} is unknown"
        for name, shape in stored.items()
        if name not in expected and name != copy_of_embedding and not family.is_redundant(name)
    ]
    if mistakes:
        more = f"; and {len(mistakes) - LISTED} more" if len(mistakes) > LISTED else ""
        raise UserError(f"{path}: the weights do not fit config.json: {'; '.join(mistakes[:LISTED])}{more}")
