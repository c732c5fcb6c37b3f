"""How a family lays our parameters out in its file: six layouts, there and back (see `families/family.py`).

`join` makes the published tensor from our parameters, `split` takes it apart again. Both only move numbers: invariant
(tested): each undoes the other bit for bit, in every dtype. `published_shape` says what shape the published tensor has
without making it, so that a file's sizes are checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trivium.families.family import Weight
from trivium.models.config import ModelConfig

Shape = tuple[int, ...]


def published_shape(weight: Weight, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a published tensor; `shapes` are those of our parameters by name."""
    first = shapes[weight.ours[0]]
    stacked = (sum(shapes[name][0] for name in weight.ours), *first[1:])
    return {
        "same": first,
        "transposed": first[::-1],
        "stacked": stacked,
        "stacked_transposed": stacked[::-1],
        "stacked_by_head": stacked,
        "row": (1, *first),
    }[weight.layout]


def join(weight: Weight, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """Our parameters (in the order of `weight.ours`) as the one published tensor, contiguous.

    A parameter that is stored as it is comes back itself, not copied.
    """
    match weight.layout:
        case "same":
            joined = tensors[0]
        case "transposed":
            joined = tensors[0].T
        case "stacked":
            joined = torch.cat(list(tensors))
        case "stacked_transposed":
            joined = torch.cat(list(tensors)).T
        case "stacked_by_head":  # 3 x (H N, ...) -> (H, 3, N, ...)
            heads = [tensor.view(config.heads, config.head_width, *tensor.shape[1:]) for tensor in tensors]
            joined = torch.stack(heads, dim=1).flatten(0, 2)
        case "row":
            joined = tensors[0][None]
    return joined.contiguous()


def split(weight: Weight, tensor: Tensor, config: ModelConfig) -> list[Tensor]:
    """The inverse of `join`: our parameters, contiguous; parts of one stack share its memory."""
    match weight.layout:
        case "same":
            parts = [tensor]
        case "transposed":
            parts = [tensor.T]
        case "stacked":
            parts = list(torch.split(tensor, [_rows(name, config) for name in weight.ours]))
        case "stacked_transposed":
            parts = list(torch.split(tensor.T.contiguous(), [_rows(name, config) for name in weight.ours]))
        case "stacked_by_head":
            by_head = tensor.view(config.heads, len(weight.ours), config.head_width, *tensor.shape[1:])
            parts = [part.flatten(0, 1) for part in by_head.unbind(1)]
        case "row":
            parts = [tensor[0]]
    return [part.contiguous() for part in parts]


def _rows(name: str, config: ModelConfig) -> int:
    """How many outputs a projection has that some family stacks with others."""
    module = name.rsplit(".", 2)[-2]
    return {
        "query": config.heads * config.head_width,
        "key": config.kv_heads * config.head_width,
        "value": config.kv_heads * config.head_width,
        "gate": config.mlp_width,
        "up": config.mlp_width,
    }[module]
