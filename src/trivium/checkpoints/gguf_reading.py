"""A GGUF file as a model: config, weights and tokenizer, as llama.cpp's converter wrote them.

What the converter changed is undone: for `llama` it reorders the rows of queries and keys, since llama.cpp rotates
neighbouring elements of a head where the published weights (and we) rotate those half a head apart; for Gemma it adds
1 to the weights of norms; for GPT-2 it turns matrices round. Quantized tensors become what llama.cpp computes with.

All tensors are checked by name and shape before the first one is read, and read one at a time: loading needs about one
copy of the weights in the dtype asked for. Invariant (tested): `transformers`, reading the same file, has the same
weights bit for bit and writes the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivium.checkpoints.gguf_file import GgufFile, read_blocks, read_header, read_tensor
from trivium.checkpoints.gguf_names import Architecture, GgufTensor, architecture_of, gguf_tensors, read_config
from trivium.checkpoints.layouts import Shape, published_shape, split
from trivium.checkpoints.quantized import PackingReader, packed_model, under
from trivium.checkpoints.weights_matching import first
from trivium.errors import UserError
from trivium.families.reading import shown
from trivium.models.build import Model, build_model
from trivium.models.config import ModelConfig
from trivium.quantization.packing import BLOCK, Packed
from trivium.quantization.schemes import Kind, Scheme
from trivium.runtime import Precision
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.gguf_vocabulary import tokenizer_from_gguf

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROPE_FACTORS = "rope_freqs.weight"
# More of them than a head can have pairs of elements is a mistake.
MOST_ROPE_FACTORS = 1 << 16
# The ids that end a text, in this order.
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# `tokenizer.ggml.token_type` of entries that only fill the vocabulary up to the number of embeddings.
UNUSED = 5


# ggml's kind of blocks: how the same numbers are packed here.
BLOCKS: dict[str, tuple[Kind, int]] = {"Q4_0": ("int4", BLOCK), "Q4_1": ("int4_asymmetric", BLOCK)}


@dataclass(frozen=True)
class Plan:
    """What a file holds and where each of its tensors goes; nothing of its tensors has been read."""

    file: GgufFile
    architecture: Architecture
    config: ModelConfig
    tensors: list[GgufTensor]


def load_gguf(
    path: str | Path,
    *,
    dtype: Precision = "fp32",
    device: torch.device | str = "cpu",
    scheme: Scheme | None = None,
) -> tuple[Model, Tokenizer, ModelConfig, tuple[int, ...]]:
    """Open a GGUF file: the model (in evaluation mode), its tokenizer, its config, the ids that end a text.

    Weights are converted to `dtype`, or packed by `scheme`: see `read_model`. Raises UserError that names the file and
    what is wrong with it.
    """
    plan = plan_reading(path)
    tokenizer = tokenizer_of(plan, str(path))
    model = read_model(plan, dtype=dtype, device=device, scheme=scheme)
    return model, tokenizer, plan.config, stop_ids(plan.file.fields, str(path))


def tokenizer_of(plan: Plan, origin: str) -> Tokenizer:
    """The tokenizer in a file. UserError where it cannot be read, or is larger than the model's table."""
    try:
        tokenizer = tokenizer_from_gguf(vocabulary_fields(plan.file.fields))
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    if tokenizer.vocab_size > plan.config.vocab_size:
        raise UserError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} entries, but there are {plan.config.vocab_size} "
            "embeddings"
        )
    return tokenizer


def plan_reading(path: str | Path) -> Plan:
    """Read the header and place each tensor; UserError that lists every one missing, of another shape, or unknown."""
    file = read_header(path)
    if file.fields.get("split.count", 1) != 1:
        raise UserError(f"{path} is one part of several: join them with llama-gguf-split --merge")
    architecture = architecture_of(file.fields, str(path))
    stored = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = None
    if ROPE_FACTORS in stored and len(stored[ROPE_FACTORS]) == 1 and stored[ROPE_FACTORS][0] <= MOST_ROPE_FACTORS:
        factors = read_tensor(file, ROPE_FACTORS, torch.float32).tolist()
    config = read_config(architecture, file.fields, stored, str(path), factors)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    tensors = gguf_tensors(architecture, config, shapes)
    expected = {tensor.weight.published: published_shape(tensor.weight, shapes) for tensor in tensors}
    _check(str(path), expected, stored, ignored={ROPE_FACTORS} if architecture.has_rope else set())
    return Plan(file, architecture, config, tensors)


def read_model(
    plan: Plan, *, dtype: Precision = "fp32", device: torch.device | str = "cpu", scheme: Scheme | None = None
) -> Model:
    """The model of a file, in evaluation mode.

    With a `scheme` matrices are packed while they are read. Those that the file holds in the very blocks of the scheme
    (Q4_0 for int4, Q4_1 for int4_asymmetric, in groups of 32) are taken over bit for bit.
    """
    keep = None if scheme is None else PackingReader(plan.config, scheme, DTYPES[dtype])
    state: dict[str, Tensor] = {}
    for tensor in plan.tensors:
        if keep is not None and (same := _same_blocks(plan.file, tensor, keep)) is not None:
            state |= {name: part.to(device) for name, part in same.items()}
            continue
        read = _as_ours(plan.file, tensor, DTYPES[dtype] if keep is None else torch.float32)
        for name, part in zip(tensor.weight.ours, split(tensor.weight, read, plan.config), strict=True):
            kept = {name: part} if keep is None else keep(name, part)
            state |= {key: value.to(device) for key, value in kept.items()}
    if scheme is not None:
        return packed_model(plan.config, scheme, state, DTYPES[dtype]).eval()
    with torch.device("meta"):
        model = build_model(plan.config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def vocabulary_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the tokenizer, without the entries at its end that only fill it up."""
    kept = {key: value for key, value in fields.items() if key.startswith("tokenizer.")}
    tokens, types = kept.get("tokenizer.ggml.tokens"), kept.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list) and len(tokens) == len(types):
        size = len(tokens)
        while size and types[size - 1] == UNUSED and tokens[size - 1] == filler(size - 1):
            size -= 1
        for key in ("tokens", "token_type", "scores"):
            values = kept.get(f"tokenizer.ggml.{key}")
            if isinstance(values, list):
                kept[f"tokenizer.ggml.{key}"] = values[:size]
    return kept


def filler(place: int) -> str:
    """The text of a vocabulary entry that stands for no token."""
    return f"[PAD{place}]"


def stop_ids(fields: Mapping[str, Any], origin: str) -> tuple[int, ...]:
    """The ids that end a text, as far as the metadata says."""
    ids = [fields[key] for key in (f"tokenizer.ggml.{name}" for name in STOP_KEYS) if fields.get(key) is not None]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise UserError(f"{origin}: the ids of the tokens that end a text are {shown(ids)}")
    return tuple(dict.fromkeys(ids))


def _as_ours(file: GgufFile, tensor: GgufTensor, dtype: torch.dtype) -> Tensor:
    """One tensor of a file with its rows in our order and without its offset."""
    name = tensor.weight.published
    if tensor.offset:  # a vector, so that fp32 costs nothing
        return (read_tensor(file, name, torch.float32) - tensor.offset).to(dtype)
    return _our_rows(read_tensor(file, name, dtype), tensor.permuted_heads)


def _same_blocks(file: GgufFile, tensor: GgufTensor, keep: PackingReader) -> dict[str, Tensor] | None:
    """The codes and scales of one tensor whose blocks in the file are those it is to be packed in; else None."""
    name, stored = tensor.weight.ours[0], file.tensors[tensor.weight.published]
    how = keep.layout_of(name)
    if how is None or how[:2] != BLOCKS.get(stored.kind) or len(tensor.weight.ours) > 1:
        return None
    if tensor.weight.layout != "same":
        return None
    rows = _our_rows(torch.from_numpy(read_blocks(file, stored.name)), tensor.permuted_heads)  # (O, I/32, bytes)
    halves = rows[..., : -BLOCK // 2].contiguous().view(torch.float16)  # a scale, and in Q4_1 an offset
    if not bool(torch.isfinite(halves).all()):
        raise UserError(f"{file.path}: {shown(stored.name)} holds scales that are no finite numbers")
    codes = rows[..., -BLOCK // 2 :].flatten(1).contiguous()
    offsets = halves[..., 1].contiguous() if how.kind == "int4_asymmetric" else None
    return under(name, Packed(how.kind, codes, halves[..., 0].contiguous(), offsets))


def _our_rows(rows: Tensor, permuted_heads: int) -> Tensor:
    """Rows of a file in our order: (H, N/2, 2, ...), element 2 i + j of a head is our element i + j N/2."""
    if not permuted_heads:
        return rows
    return rows.view(permuted_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _check(origin: str, expected: Mapping[str, Shape], stored: Mapping[str, Shape], ignored: set[str]) -> None:
    """Refuse a file whose tensors are not those of the model."""
    mistakes = [
        f"{shown(name)} is {stored[name]} and must be {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    mistakes += [f"{name} is missing (shape {shape})" for name, shape in expected.items() if name not in stored]
    unknown = {name: shape for name, shape in stored.items() if name not in expected and name not in ignored}
    mistakes += [f"{shown(name)} {shape} is unknown" for name, shape in unknown.items()]
    if mistakes:
        raise UserError(f"{origin}: the tensors do not fit the metadata: {'; '.join(first(mistakes))}")
