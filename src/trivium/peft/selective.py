"""Training some of a model's own weights: which they are.

All biases (BitFit, Ben Zaken et al., 2022), the norms, the last blocks, the table of tokens, or what patterns name.
Invariant the tests check: the counts of `planner/peft_counts.py`, and nothing else receives a gradient.
"""

from __future__ import annotations

from torch import nn

from trivium.errors import UserError
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.models.layers import LayerNorm, RMSNorm
from trivium.models.transformer import Stack
from trivium.peft.settings import (
    BiasSettings,
    EmbeddingsSettings,
    LastLayersSettings,
    NoPeftSettings,
    NormsSettings,
    SelectiveSettings,
)
from trivium.peft.targets import bare_modules, bare_parameters, parameters_named

OwnSettings = NoPeftSettings | SelectiveSettings
"""Methods that train the model's own weights."""
MISSING = {
    "bias": "biases",
    "norms": "norms with weights",
    "embeddings": "table of tokens that is not packed",
    "last_layers": "weights in its last blocks that are not packed",
}


def chosen(model: nn.Module, settings: OwnSettings) -> list[str]:
    """The names of the parameters that the method trains; UserError where there are none."""
    places = bare_parameters(model)
    if isinstance(settings, NoPeftSettings):
        return list(places)
    if isinstance(settings, BiasSettings):
        names = [name for name, (_, own) in places.items() if own == "bias"]
    elif isinstance(settings, NormsSettings):
        names = [name for name, (module, _) in places.items() if isinstance(module, LayerNorm | RMSNorm)]
    elif isinstance(settings, LastLayersSettings):
        names = _of_last_layers(model, settings.layers)
    elif isinstance(settings, EmbeddingsSettings):
        names = [name for name in places if name == "embedding.weight"]
    else:
        return parameters_named(model, settings.patterns, "patterns")
    if not names:
        missing = MISSING[settings.method]
        raise UserError(f"peft.method={settings.method} trains nothing: this model has no {missing}; choose lora")
    return names


def _of_last_layers(model: nn.Module, layers: int) -> list[str]:
    stack_name = "decoder" if isinstance(model, EncoderDecoder) else "stack"
    stack = bare_modules(model)[stack_name]
    assert isinstance(stack, Stack)
    present = len(stack.blocks)
    if layers > present:
        raise UserError(f"peft.layers={layers}, but there are {present}: give {present} at most")
    blocks = tuple(f"{stack_name}.blocks.{layer}." for layer in range(present - layers, present))
    return [name for name in bare_parameters(model) if name.startswith((*blocks, f"{stack_name}.norm."))]
