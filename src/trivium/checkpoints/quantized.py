"""Packed models in model directories, and models packed while they are read.

A quantized directory is one of its published family whose config.json also says how matrices are packed
(`quantization_config`, quant_method `trivium`), and whose `packed.safetensors` holds the tensors of the packed model
under our own names: `stack.blocks.0.attention.query.packed`, `.scales`, ... The file is not called `model.safetensors`,
so that `transformers`, which only warns of methods it does not know, refuses the directory.

Loading builds the model without memory, with packed modules in the places the scheme tells, compares every name, shape
and type of the file with it, and then takes the tensors as they are. A dense directory is packed tensor by tensor while
it is read. Either way the peak is about the packed model and one tensor of the files.

Invariants its tests check: a model saved and loaded gives bit-equal logits; every damaged file is refused in one line;
`transformers` refuses such a directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trivium.checkpoints.tensors import NAME_OF_TORCH, TensorFile
from trivium.checkpoints.weights_matching import WEIGHT_DTYPES, Stored, first
from trivium.checkpoints.weights_reading import PACKED_WEIGHTS
from trivium.errors import UserError
from trivium.families.reading import shown
from trivium.models.build import Model, build_model
from trivium.models.config import ModelConfig
from trivium.progress import SILENT, Progress
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.packing import Packed, full_scales, pack, unpack
from trivium.quantization.replacing import make_packed_places, matrices, refuse_unknown
from trivium.quantization.schemes import Layout, Scheme, layout


class DenseState(Mapping[str, Tensor]):
    """A model's parameters by name as if it were dense: packed matrices are unpacked when they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._packed: dict[str, PackedMatrix] = {
            f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, PackedMatrix)
        }
        inside = {f"{name.removesuffix('weight')}{part}" for name in self._packed for part in _parts()}
        self._plain: dict[str, Tensor] = {
            name: tensor.detach() for name, tensor in model.state_dict().items() if name not in inside
        }

    def __getitem__(self, name: str) -> Tensor:
        packed = self._packed.get(name)
        return self._plain[name] if packed is None else unpack(packed.matrix)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._packed, *self._plain))

    def __len__(self) -> int:
        return len(self._packed) + len(self._plain)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each, nothing unpacked."""
        packed = {name: module.matrix.shape for name, module in self._packed.items()}
        return packed | {name: tuple(tensor.shape) for name, tensor in self._plain.items()}

    def packed(self, name: str) -> Packed | None:
        """The packed form of a parameter, where it has one."""
        return self._packed[name].matrix if name in self._packed else None


def write_packed(folder: Path, model: nn.Module) -> None:
    """Write all tensors of a packed model into `folder` (which the caller stages), none of them copied."""
    file = TensorFile(model.state_dict(), PACKED_WEIGHTS)
    with (folder / PACKED_WEIGHTS).open("wb") as target:
        for piece in file.pieces():
            target.write(piece)


def packed_model(config: ModelConfig, scheme: Scheme, state: Mapping[str, Tensor], dtype: torch.dtype) -> Model:
    """The model whose packed and other tensors `state` holds by name, and which computes in `dtype`."""
    return _filled(_skeleton(config, scheme), state, dtype)


def packed_copy(model: Model, config: ModelConfig, scheme: Scheme, progress: Progress = SILENT) -> Model:
    """A packed model beside a dense one, which stays; they share no memory."""
    keep = PackingReader(config, scheme, model.dtype)
    state: dict[str, Tensor] = {}
    tensors = model.state_dict()
    progress.start(f"packing as {scheme.format}", len(tensors), "tensors")
    for name, tensor in tensors.items():
        kept = keep(name, tensor)
        state |= {key: part.clone() if part is tensor else part for key, part in kept.items()}
        progress.advance()
    progress.finish()
    return packed_model(config, scheme, state, model.dtype).train(model.training)


def _skeleton(config: ModelConfig, scheme: Scheme) -> Model:
    """The model of a config on the meta device, packed modules in their places; UserError for unknown `keep`."""
    with torch.device("meta"):
        model = build_model(config)
    refuse_unknown(model, scheme)
    return make_packed_places(model, scheme)


def _filled(skeleton: Model, state: Mapping[str, Tensor], dtype: torch.dtype) -> Model:
    skeleton.load_state_dict(state, assign=True)
    for _, module in _packed_modules(skeleton):
        module.typed = torch.empty(0, dtype=dtype, device=module.packed.device)
    return skeleton


def read_packed(
    path: Path,
    config: ModelConfig,
    scheme: Scheme,
    stored: Mapping[str, Stored],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Model:
    """The model of a quantized directory; what is not packed is converted to `dtype`."""
    model = _skeleton(config, scheme)
    wanted = model.state_dict()
    fixed = {f"{name}.{part}" for name, module in _packed_modules(model) for part in module.matrix.tensors()}
    _check(path, wanted, fixed, stored)
    state: dict[str, Tensor] = {}
    for shard in sorted({tensor.file for tensor in stored.values()}):
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for name in (name for name, tensor in stored.items() if tensor.file == shard):
                    tensor = file.get_tensor(name)
                    state[name] = tensor.to(device) if name in fixed else tensor.to(device, dtype)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard}: not a whole safetensors file: {error}") from None
    model = _filled(model, state, dtype)
    for name, module in _packed_modules(model):
        _refuse_damaged(f"{path}: {name}", module.matrix)
    return model


class PackingReader:
    """Takes the tensors of a dense model one by one and packs those that a scheme packs, for `packed_model`."""

    def __init__(self, config: ModelConfig, scheme: Scheme, dtype: torch.dtype) -> None:
        """`dtype` is the type that all others are converted to."""
        if scheme.method != "nearest":
            raise UserError(f"{scheme.method} looks at text, which loading does not: use trivium quantize")
        self.dtype = dtype
        with torch.device("meta"):
            found = matrices(build_model(config), scheme)
        self._layouts = {
            f"{name}.weight": layout(scheme, module.weight.shape[1], name) for name, module in found.items()
        }

    def layout_of(self, name: str) -> Layout | None:
        """How the parameter `name` is packed; None: it is not."""
        return self._layouts.get(name)

    def __call__(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What of `tensor`, our parameter `name`, is kept: itself, or its codes and scales."""
        how = self._layouts.get(name)
        return {name: tensor.to(self.dtype)} if how is None else under(name, pack(tensor, how, name))


def under(name: str, packed: Packed) -> dict[str, Tensor]:
    """The tensors of a packed matrix by the names they have in the model; `name` is that of the dense parameter."""
    return {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in packed.tensors().items()}


def _parts() -> tuple[str, ...]:
    return ("packed", "scales", "offsets", "steps")


def _packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedMatrix]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PackedMatrix))


def _check(path: Path, wanted: Mapping[str, Tensor], fixed: set[str], stored: Mapping[str, Stored]) -> None:
    """Refuse a file whose tensors are not those of the packed model."""
    mistakes = [f"{name} is missing" for name in wanted if name not in stored]
    for name, tensor in stored.items():
        expected = wanted.get(name)
        if expected is None:
            mistakes.append(f"{shown(name)} {tensor.shape} is unknown")
            continue
        types = (NAME_OF_TORCH[str(expected.dtype)],) if name in fixed else WEIGHT_DTYPES
        if tensor.shape != tuple(expected.shape):
            mistakes.append(f"{name} is {tensor.shape} and must be {tuple(expected.shape)}")
        elif tensor.dtype not in types:
            mistakes.append(f"{name} is stored as {tensor.dtype} and must be {' or '.join(types)}")
    if mistakes:
        raise UserError(f"{path}: the weights do not fit config.json: {'; '.join(first(mistakes))}")


def _refuse_damaged(where: str, matrix: Packed) -> None:
    """Refuse codes that `pack` never makes and scales that are no finite numbers."""
    if matrix.packed.dtype == torch.int8 and matrix.packed.numel() and int(matrix.packed.amin()) < -127:
        raise UserError(f"{where}: a code is -128, and codes are from -127 to 127: the file is damaged")
    scales = full_scales(matrix)
    finite = [tensor for tensor in (scales, matrix.offsets, matrix.steps) if tensor is not None]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in finite):
        raise UserError(f"{where}: a scale is infinite or not a number: the file is damaged")
    if matrix.kind != "int4" and scales.numel() and float(scales.amin()) < 0:
        raise UserError(f"{where}: a scale is negative: the file is damaged")
