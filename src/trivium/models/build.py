"""From a config to a model: its class, its initial weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trivium.models.config import Kind, ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.models.transformer import Stack

Model = Decoder | Encoder | EncoderDecoder

# The model for each kind of stack.
MODELS: dict[Kind, type[Model]] = {"decoder": Decoder, "encoder": Encoder, "encoder-decoder": EncoderDecoder}

# The projections of a block that write to the residual stream.
RESIDUAL = ("attention.output.weight", "cross.output.weight", "mlp.down.weight")


def build_model(config: ModelConfig) -> Model:
    """The model a config describes, with torch's default weights: `initialise` it or load weights into it.

    On the meta device, where there is no memory, nothing is drawn.
    """
    if torch.get_default_device().type != "meta":
        return MODELS[config.kind](config)
    with _NothingDrawn():
        return MODELS[config.kind](config)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out `torch.nn.init`: drawing on the meta device changes nothing, and makes torch import its compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Recompute each block's activations in the backward pass instead of keeping them (Chen et al., 2016)."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.gradient_checkpointing = on


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw all weights of a fresh model: the only place where initial weights are decided.

    Matrices and tables are normal(0, init_std); the projections of a block that write to the residual stream are
    scaled by 1/sqrt(2 L) (Radford et al., 2019), since about 2 L of them add up there. Norm weights are 1, biases 0.
    Where a config scales logits or attention scores in a way of its own, the weights that make them are drawn that much
    larger or smaller, so that every model begins with logits and scores of the usual size. Each parameter has its own
    generator, seeded by (seed, its name): order, device and other parameters have no influence.
    """
    norm = 0.0 if config.norm == "rmsnorm_around_one" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith("norm.weight"):
                parameter.fill_(norm)
            else:
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
                draw = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(draw.normal_(0.0, initial_std(config, name), generator=generator))


def initial_std(config: ModelConfig, name: str) -> float:
    """The standard deviation that the parameter `name` is drawn with."""
    if name.endswith(RESIDUAL):
        return config.init_std / math.sqrt(2 * max(config.layers, config.decoder_layers))
    scores = "embedding.weight" if config.tied_embeddings else "head.output.weight"
    if config.head == "lm" and name == scores:
        return config.init_std / config.logit_scale
    if name.endswith(("attention.query.weight", "cross.query.weight")) and config.attention_scale:
        return config.init_std / (config.attention_scale * math.sqrt(config.head_width))
    return config.init_std
