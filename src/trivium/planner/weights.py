"""Bytes of a model's weights as they are stored when they are only read: in a precision, or quantized.

Quantized are the matrices of the blocks, the layer before the head, the head's projection and the table of tokens
(`quantization/schemes.py` says how each is packed); norms, biases and tables of positions stay in the precision.

Invariant its test checks: equal, to the byte, to the tensors of models quantized by `quantization/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.activations import item_bytes
from trivium.quantization.schemes import Scheme, packed_bytes
from trivium.runtime import Precision


class Matrix(NamedTuple):
    """So many matrices (outputs, inputs) of the same kind."""

    name: str
    copies: int
    outputs: int
    inputs: int


def stored_weights_bytes(config: ModelConfig, precision: Precision, scheme: Scheme | None = None) -> int:
    """All parameters of a model that is only read; with a scheme that packs, its matrices as that says.

    Of what `scheme.keep` names, modules of one block only are not told apart: they count as packed.
    """
    if scheme is None or not scheme.packs:
        return num_parameters(config) * (item_bytes(precision) if scheme is None else 2)
    packed, rest = 0, num_parameters(config)
    for matrix in quantized_matrices(config):
        if not scheme.keeps(matrix.name):
            packed += matrix.copies * packed_bytes(scheme, matrix.outputs, matrix.inputs, matrix.name)
            rest -= matrix.copies * matrix.outputs * matrix.inputs
    return packed + rest * item_bytes(precision)


def quantized_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """Every matrix that quantization packs; those of all blocks together under one name."""
    width, query, key = config.width, config.heads * config.head_width, config.kv_heads * config.head_width
    blocks, attentions = config.layers + config.decoder_layers, config.layers + 2 * config.decoder_layers
    yield Matrix("attention.query", attentions, query, width)
    yield Matrix("attention.key", attentions, key, width)
    yield Matrix("attention.value", attentions, key, width)
    yield Matrix("attention.output", attentions, width, query)
    if config.mlp == "gated":
        yield Matrix("mlp.gate", blocks, config.mlp_width, width)
    yield Matrix("mlp.up", blocks, config.mlp_width, width)
    yield Matrix("mlp.down", blocks, width, config.mlp_width)
    yield Matrix("embedding", 1, config.vocab_size, width)
    if config.head_hidden != "none":
        yield Matrix("head.hidden", 1, width, width)
    if config.head != "none" and not (config.head == "lm" and config.tied_embeddings):
        yield Matrix("head.output", 1, config.head_outputs, width)
