"""A model as one GGUF file, for llama.cpp, Ollama and whatever else reads them: the inverse of `gguf_reading.py`.

Matrices are stored in the format asked for; vectors (norms, biases) and tables of positions always as F32, as llama.cpp
wants them. Blocks hold 32 numbers: a matrix whose rows are not made of 32 is stored as F16 instead; and in a Q4_0 file
the embeddings, which are the output as well in many models, are Q8_0. Quantized by `gguf.quants.quantize`.

The file is written beside its place and renamed, so that it is there whole or not at all; one tensor at a time is
converted. Invariants (tested): reading gives back every number that the format can hold, llama.cpp and `transformers`
open the file and write the same text, and the quantized bytes are the library's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from trivium.checkpoints.gguf_names import Architecture, GgufTensor, architecture_for, gguf_tensors, write_fields
from trivium.checkpoints.gguf_reading import BLOCKS, ROPE_FACTORS, UNUSED, filler
from trivium.checkpoints.gguf_rope import rope_factors
from trivium.checkpoints.layouts import Shape, join, published_shape
from trivium.checkpoints.quantized import DenseState
from trivium.errors import UserError
from trivium.files import make_directory, sync_directory, sync_file, temporary_beside
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.progress import SILENT, Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.gguf_vocabulary import gguf_fields

GgufDtype = Literal["fp32", "fp16", "bf16", "q8_0", "q4_0"]


class Format(NamedTuple):
    """How the matrices of a file are stored."""

    matrices: str
    """ggml's name of the kind."""
    embeddings: str
    """That of token embeddings and output."""
    file_type: int
    """`general.file_type`, llama.cpp's number for such files."""


FORMATS: dict[GgufDtype, Format] = {
    "fp32": Format("F32", "F32", 0),
    "fp16": Format("F16", "F16", 1),
    "bf16": Format("BF16", "BF16", 32),
    "q8_0": Format("Q8_0", "Q8_0", 7),
    "q4_0": Format("Q4_0", "Q8_0", 2),
}
QUANTIZATION_VERSION = 2
# The largest numbers, by kind; blocks have a scale in F16.
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
# Metadata that is a list of bytes; other lists of whole numbers have 32 bits.
BYTES = ("tokenizer.ggml.precompiled_charsmap",)
EMBEDDINGS = ("token_embd.weight", "output.weight")
TABLES = ("position_embd.weight", "token_types.weight")


class Written(NamedTuple):
    """One tensor of the file to be."""

    name: str
    shape: Shape
    kind: gguf.GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        numbers, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // numbers * size


def save_gguf(
    path: str | Path,
    model: nn.Module,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: GgufDtype = "fp16",
    name: str = "",
    eos_ids: Sequence[int] = (),
    progress: Progress = SILENT,
) -> None:
    """Write `model` as a GGUF file; one that is there already is replaced in one step.

    `dtype` is how matrices are stored, `name` the model's name (none: the file's), `eos_ids` the ids that end a text
    (none: the tokenizer's end-of-text token). Raises UserError when no architecture of GGUF files has models of this
    shape, and for weights that `dtype` cannot hold.
    """
    path = replaceable_file(path)
    architecture = architecture_for(config)
    state = DenseState(model)
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in build_model(config).state_dict().items()}
    if state.shapes() != shapes:
        raise ValueError("the model is not one of its config: merge adapters and take the model out of its wrappers")
    tensors = gguf_tensors(architecture, config, shapes)
    written = [_written(tensor.weight.published, published_shape(tensor.weight, shapes), dtype) for tensor in tensors]
    factors = rope_factors(config.rope_width, config.rope_theta, config.rope_scaling) if architecture.has_rope else None
    if factors is not None:
        written.insert(0, _written(ROPE_FACTORS, (len(factors),), dtype))
    progress.start(f"writing {path.name}", len(written), "tensors")
    with _replaced(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            _write_fields(writer, _all_fields(architecture, config, tokenizer, dtype, name or path.stem, eos_ids))
            for tensor in written:
                writer.add_tensor_info(
                    tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(np.array(factors, np.float32))
            for source, place in zip(tensors, written[factors is not None :], strict=True):
                same = _same_blocks(source, state, place)
                writer.write_tensor_data(_encoded(_as_theirs(source, state, config), place) if same is None else same)
                progress.advance()
        finally:
            writer.close()
    progress.finish()


def replaceable_file(path: str | Path) -> Path:
    """The path of a file to write; UserError when something else is there."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} exists and is no file, so it is not replaced: choose another name")
    return path


def _all_fields(
    architecture: Architecture,
    config: ModelConfig,
    tokenizer: Tokenizer,
    dtype: GgufDtype,
    name: str,
    eos_ids: Sequence[int],
) -> dict[str, Any]:
    """The whole metadata."""
    fields = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": FORMATS[dtype].file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
        **write_fields(architecture, config),
        **filled_up(gguf_fields(tokenizer), config.vocab_size),
    }
    for key, number in zip(("eos_token_id", "eot_token_id", "eom_token_id"), eos_ids, strict=False):
        fields[f"tokenizer.ggml.{key}"] = number
    return fields


def filled_up(fields: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The vocabulary with one entry for each embedding, which llama.cpp counts on."""
    filled = dict(fields)
    tokens = fields["tokenizer.ggml.tokens"]
    missing = range(len(tokens), size)
    values: dict[str, list[Any]] = {
        "tokens": [filler(place) for place in missing],
        "token_type": [UNUSED] * len(missing),
        "scores": [-1000.0] * len(missing),
    }
    for key, added in values.items():
        if f"tokenizer.ggml.{key}" in fields:
            filled[f"tokenizer.ggml.{key}"] = [*fields[f"tokenizer.ggml.{key}"], *added]
    return filled


def _write_fields(writer: gguf.GGUFWriter, fields: Mapping[str, Any]) -> None:
    """Each value under the type that fits it: ids and counts are unsigned, floats have 32 bits."""
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, bytes(value) if key in BYTES else value)


def _written(name: str, shape: Shape, dtype: GgufDtype) -> Written:
    """How one tensor is stored."""
    formats = FORMATS[dtype]
    kind = gguf.GGMLQuantizationType[formats.embeddings if name in EMBEDDINGS else formats.matrices]
    if len(shape) == 1 or name in TABLES:
        kind = gguf.GGMLQuantizationType.F32
    elif shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    return Written(name, shape, kind)


def _as_theirs(tensor: GgufTensor, state: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
    """One tensor of the file in fp32, on the CPU: parameters joined, rows in llama.cpp's order, its offset added."""
    joined = join(tensor.weight, [state[ours].to("cpu", torch.float32) for ours in tensor.weight.ours], config)
    joined = _their_rows(joined, tensor.permuted_heads)
    return joined + tensor.offset if tensor.offset else joined


def _their_rows(rows: Tensor, permuted_heads: int) -> Tensor:
    """Rows in llama.cpp's order: our element i + j N/2 of a head becomes element 2 i + j."""
    if not permuted_heads:
        return rows
    return rows.view(permuted_heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _same_blocks(tensor: GgufTensor, state: DenseState, place: Written) -> np.ndarray[Any, Any] | None:
    """The blocks of a matrix that is packed as the file is to hold it, bit for bit; else None."""
    packed = state.packed(tensor.weight.ours[0])
    if (
        packed is None
        or tensor.weight.layout != "same"
        or (packed.kind, packed.group_size) != BLOCKS.get(place.kind.name)
    ):
        return None
    scales = packed.scales if packed.offsets is None else torch.stack((packed.scales, packed.offsets), -1)
    outputs, groups = packed.scales.shape
    halves = scales.cpu().contiguous().view(torch.uint8).view(outputs, groups, -1)
    blocks = torch.cat((halves, packed.packed.cpu().view(outputs, groups, -1)), -1)
    return _their_rows(blocks, tensor.permuted_heads).flatten(1).contiguous().numpy()


def _encoded(tensor: Tensor, place: Written) -> np.ndarray[Any, Any]:
    """The numbers as they stand in the file; UserError for those that it cannot hold."""
    largest = tensor.abs().max()
    if not torch.isfinite(largest):
        raise UserError(f"{place.name} holds infinities or what is no number: the model is damaged")
    if largest > LARGEST.get(place.kind.name, math.inf):
        raise UserError(f"{place.name} holds numbers up to {largest:.3g}, too large for {place.kind.name}: use bf16")
    with np.errstate(all="ignore"):  # of scales too small for their format, whose blocks become zeros
        return gguf.quantize(tensor.numpy(), place.kind)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to `path` once all is written; an error leaves `path` as it was."""
    make_directory(path.parent)
    temporary = temporary_beside(path)
    try:
        yield temporary
        sync_file(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_directory(path.parent)
