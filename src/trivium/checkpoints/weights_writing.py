"""A model's parameters as safetensors files under their published names.

One file, or shards of bounded size and an index that says which tensor is in which. Tensors are brought to their
published layout and dtype one shard at a time. Invariant (tested): `transformers` reads the same numbers, and what was
read by `weights_reading.py` is written back with the same bytes for every tensor.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from trivium.checkpoints.json_files import write_object
from trivium.checkpoints.layouts import join, published_shape
from trivium.checkpoints.quantized import DenseState
from trivium.checkpoints.weights_reading import INDEX, WEIGHTS
from trivium.errors import UserError
from trivium.families.family import Family, Weight
from trivium.models.build import build_model
from trivium.models.config import ModelConfig

LARGEST_SHARD_BYTES = 5_000_000_000
"""So large a file is still comfortable to download and to hold in memory."""


def write_weights(
    folder: Path,
    model: nn.Module,
    config: ModelConfig,
    family: Family,
    dtype: torch.dtype,
    largest_shard_bytes: int = LARGEST_SHARD_BYTES,
) -> None:
    """Write the model's tensors into `folder` (which the caller stages), packed ones unpacked.

    A tensor larger than a shard gets its own.

    Raises ValueError when the model is not one of `config`, UserError when the file cannot be written.
    """
    state = DenseState(model)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    if state.shapes() != shapes:
        raise ValueError("the model is not one of its config: merge adapters and take the model out of its wrappers")
    weights = list(family.weights(config))
    sizes = [math.prod(published_shape(weight, shapes)) * dtype.itemsize for weight in weights]
    shards = _shards(weights, sizes, largest_shard_bytes)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for weight in shard:
            parts = [state[ours].detach().to("cpu", dtype) for ours in weight.ours]
            tensors[file_name(family, config, weight.published)] = join(weight, parts, config)
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{folder / name}: the weights could not be written: {error}") from error
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        write_object(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": places})


def file_name(family: Family, config: ModelConfig, published: str) -> str:
    """The name of a tensor in a file: that of the bare model where there is no head."""
    return published.removeprefix(family.base_prefix) if config.head == "none" else published


def _shards(weights: list[Weight], sizes: list[int], largest: int) -> list[list[Weight]]:
    """Consecutive tensors of at most `largest` bytes together."""
    shards: list[list[Weight]] = [[]]
    filled = 0
    for weight, size in zip(weights, sizes, strict=True):
        if shards[-1] and filled + size > largest:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += size
    return shards
