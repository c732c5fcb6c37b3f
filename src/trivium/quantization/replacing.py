"""Which modules of a model are packed, and putting packed ones in their places.

All linear layers (of attention, of a source's keys and values, of the MLP, of the head) and the table of tokens.
Norms, biases, tables of positions, of segment types and of relative distances stay in the type the model computes in.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from trivium.errors import UserError
from trivium.models.build import Model
from trivium.models.layers import Embedding
from trivium.quantization.linear import PackedEmbedding, PackedLinear, PackedMatrix
from trivium.quantization.packing import Packed
from trivium.quantization.schemes import SCALES_PER_SUPERBLOCK, Layout, Scheme, layout


def scheme_of(model: nn.Module) -> Scheme | None:
    """The scheme that a model was quantized by; None: it was not."""
    scheme = vars(model).get("quantization")
    return scheme if isinstance(scheme, Scheme) else None


def set_scheme(model: nn.Module, scheme: Scheme) -> None:
    """Remember the scheme with the model."""
    model.quantization = scheme  # type: ignore[assignment]


def matrices(model: nn.Module, scheme: Scheme) -> dict[str, nn.Linear | Embedding]:
    """The modules that `scheme` packs and that are not packed yet, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Embedding) and not scheme.keeps(name)
    }


def refuse_unknown(model: nn.Module, scheme: Scheme) -> None:
    """UserError for names in `keep` that no module has."""
    names = [name for name, _ in model.named_modules()]
    if unknown := [pattern for pattern in scheme.keep if not any(fnmatchcase(name, pattern) for name in names)]:
        raise UserError(f"keep: the model has no module {', '.join(unknown)}; names are like stack.blocks.0.mlp.down")


def put_packed(parent: nn.Module, name: str, packed: Packed) -> PackedMatrix:
    """Put a packed module in the place of `parent`'s module `name`, whose matrix it holds; bias and modes stay."""
    old = parent.get_submodule(name)
    new: PackedMatrix
    if isinstance(old, Embedding):
        new = PackedEmbedding(packed, old.weight.dtype)
    elif isinstance(old, nn.Linear):
        new = PackedLinear(packed, old.bias, old.weight.dtype)
    else:
        raise ValueError(f"{name} is a {type(old).__name__}: no matrix")
    if tuple(old.weight.shape) != packed.shape:
        raise ValueError(f"{name} is {tuple(old.weight.shape)}, its packed form {packed.shape}")
    parent.set_submodule(name, new.train(old.training))
    return new


def empty_packed(how: Layout, outputs: int, inputs: int, device: torch.device | str) -> Packed:
    """A packed matrix (outputs, inputs) with nothing in it."""

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    if not how.group_size:
        return Packed(how.kind, empty(torch.int8, outputs, inputs), empty(torch.float32, outputs))
    groups = inputs // how.group_size
    codes = empty(torch.uint8, outputs, inputs // 2)
    if how.kind != "nf4":
        offsets = empty(torch.float16, outputs, groups) if how.kind == "int4_asymmetric" else None
        return Packed(how.kind, codes, empty(torch.float16, outputs, groups), offsets)
    if not how.double_quantization:
        return Packed("nf4", codes, empty(torch.float32, outputs, groups))
    superblocks = -(-outputs * groups // SCALES_PER_SUPERBLOCK)
    scales = empty(torch.int8, outputs, groups)
    return Packed("nf4", codes, scales, empty(torch.float32, 1), empty(torch.float32, superblocks))


def make_packed_places(model: Model, scheme: Scheme) -> Model:
    """Replace all matrices of a model on the meta device by packed ones without contents: to be loaded into."""
    for name, module in matrices(model, scheme).items():
        outputs, inputs = module.weight.shape
        how = layout(scheme, inputs, name)
        put_packed(model, name, empty_packed(how, outputs, inputs, "meta"))
    set_scheme(model, scheme)
    return model
