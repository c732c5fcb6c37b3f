"""A decoder as the kernels see it: addresses of its weights and the choices of its config, gathered once.

Weights stay where they are, dense or packed; only what is small is copied, in fp32 (norms, biases, the angles of rotary
positions). A decoder is described only if everything in it is known here: no adapters, no formats without a kernel.

Letters as in `models/config.py`; P positions, R elements of a head that are rotated.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from trivium.kernels.products import matrix_of
from trivium.kernels.structures import ACTIVATIONS, MATRIX_KINDS, NORM_KINDS, Layer, Matrix, Norm, Program
from trivium.models.attention import Attention
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.layers import MLP, Embedding, LayerNorm, RMSNorm
from trivium.models.masks import alibi_bias
from trivium.models.positions import rotation
from trivium.models.transformer import Block

MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
DENSE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Unknown(Exception):
    """Something in a model that the kernels cannot compute."""


class FastProgram:
    """The structure the kernels read, and all that keeps its addresses alive."""

    def __init__(self, model: Decoder) -> None:
        """Raises `Unknown` when there is something in the model that the kernels do not know."""
        refuse_unknown(model)
        self.config: ModelConfig = model.config
        self._kept: list[object] = []
        config, stack = model.config, model.stack
        self.layers = (Layer * config.layers)(*(self._layer(block) for block in stack.blocks))
        self.program = Program(
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            mlp_width=config.mlp_width,
            rotated=config.rope_width,
            activation=ACTIVATIONS[config.activation],
            parallel=config.residual == "parallel",
            post_norm=config.norm_placement == "post",
            attention_scale=config.attention_scale or config.head_width**-0.5,
            attention_softcap=config.attention_softcap,
            logit_scale=config.logit_scale,
            norm=self._norm(stack.norm),
            head=self._head(model),
            layer=self.layers,
        )
        if config.positions == "alibi":
            # Minus the slopes are what a distance of 1 adds.
            self.program.slopes = self._address(-alibi_bias(config.heads, 1, 2, torch.device("cpu"))[0, :, 0, 0])
        matrices = [matrix for layer in self.layers for matrix in matrices_of(layer)]
        self.weights_of_a_layer = sum(each.outputs * each.inputs for each in matrices) // config.layers
        self._positions = 0

    def reach(self, positions: int) -> None:
        """Make sure that the angles of so many positions are known."""
        config = self.config
        if config.positions != "rotary" or positions <= self._positions:
            return
        self._positions = max(positions, 2 * self._positions)
        self._angles: dict[bool, tuple[Tensor, Tensor]] = {}
        for layer, structure in enumerate(self.layers):
            local = config.is_windowed(layer) and config.local_rope_theta > 0
            if local not in self._angles:
                self._angles[local] = self._cosines_sines(local)
            cosines, sines = self._angles[local]
            structure.cosines, structure.sines = cosines.data_ptr(), sines.data_ptr()

    def _cosines_sines(self, local: bool) -> tuple[Tensor, Tensor]:
        """(P, R / 2) fp32 each; the two halves of a head turn by the same angles."""
        half = self.config.rope_width // 2
        turn = rotation(torch.arange(self._positions), self.config, torch.float32, local=local)
        return turn.cos[:, 0, :half].contiguous(), turn.signed_sin[:, 0, half:].contiguous()

    def _address(self, tensor: Tensor) -> int:
        """Of the tensor in fp32, which is kept (as it is, where it is fp32)."""
        wide = tensor.detach().float().contiguous()
        self._kept.append(wide)
        return wide.data_ptr()

    def _layer(self, block: nn.Module) -> Layer:
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        if type(attention) is not Attention or type(mlp) is not MLP:  # something stands beside it
            raise Unknown(f"{type(attention).__name__} and {type(mlp).__name__}")
        layer = Layer(window=self.config.sliding_window if attention.windowed else 0)
        for name in ("attention", "attention_output", "mlp", "mlp_output"):
            setattr(layer, f"{name}_norm", self._norm(getattr(block, f"{name}_norm")))
        layer.query_norm, layer.key_norm = self._norm(attention.query_norm), self._norm(attention.key_norm)
        for name in ("query", "key", "value", "output"):
            setattr(layer, name, self._matrix(getattr(attention, name)))
        layer.up, layer.down = self._matrix(mlp.up), self._matrix(mlp.down)
        if mlp.gate is not None:
            layer.gate = self._matrix(mlp.gate)
        return layer

    def _norm(self, norm: nn.Module | None) -> Norm:
        if norm is None:
            return Norm()
        if type(norm) is RMSNorm:
            weight = norm.weight.detach().float() + 1 if norm.around_one else norm.weight
            return Norm(kind=NORM_KINDS["rms"], eps=norm.eps, weight=self._address(weight))
        if type(norm) is LayerNorm:
            bias = None if norm.bias is None else self._address(norm.bias)
            return Norm(kind=NORM_KINDS["layer"], eps=norm.eps, weight=self._address(norm.weight), bias=bias)
        raise Unknown(type(norm).__name__)

    def _head(self, model: Decoder) -> Matrix:
        if model.head.output is not None:
            return self._matrix(model.head.output)
        return self._matrix(model.embedding, model.head.bias)

    def _matrix(self, module: nn.Module, bias: Tensor | None = None) -> Matrix:
        """Of a plain linear layer or table of tokens, or of a packed one, which is known by what it holds."""
        packed, scales, offsets = torch.empty(0), None, None
        if isinstance(module, nn.Linear | Embedding) and type(module) in (nn.Linear, Embedding):
            kind, packed = DENSE.get(module.weight.dtype, ""), module.weight.detach()
        else:
            kind, packed = getattr(module, "kind", ""), getattr(module, "packed", packed)
            scales, offsets = getattr(module, "scales", None), getattr(module, "offsets", None)
        if kind not in MATRIX_KINDS:
            raise Unknown(f"{type(module).__name__} {kind}")
        bias = getattr(module, "bias", bias)
        try:
            matrix, kept = matrix_of(kind, packed, scales, offsets, bias)
        except ValueError as error:
            raise Unknown(str(error)) from error
        self._kept.append(kept)
        return matrix


def refuse_unknown(model: nn.Module) -> None:
    """Raise `Unknown` for models whose kind or config the kernels do not compute."""
    if type(model) is not Decoder:
        raise Unknown(type(model).__name__)
    config = model.config
    if config.head != "lm" or config.head_hidden != "none" or config.positions == "relative":
        raise Unknown("head or positions")
    if model.stack.prefix is not None or model.stack.prompt is not None:
        raise Unknown("learned positions")
    if config.rope_scaling is not None and config.rope_scaling.method == "dynamic":
        raise Unknown("angles that grow with the text")
    if model.device.type != "cpu" or model.dtype not in DENSE:
        raise Unknown(f"{model.dtype} on {model.device}")


def matrices_of(layer: Layer) -> list[Matrix]:
    """Those the layer has."""
    return [matrix for matrix in (getattr(layer, name) for name in MATRICES) if matrix.outputs]


def addresses(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the tensors' addresses."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
