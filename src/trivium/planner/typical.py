"""A typical model of so many parameters, for plans of a size that has no config yet.

A Llama (Touvron et al., 2023) of Llama 2's proportions: heads 128 wide, as many layers as heads, a gated MLP of 8/3 the
width, 32,000 ids, tables untied: 32 layers of width 4096 are its 6.7 billion parameters.

Invariant its test checks: the size is met within 10 % from 20 million parameters on, else it is refused.
"""

from __future__ import annotations

from bisect import bisect_left

from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters

VOCABULARY, HEAD_WIDTH, CONTEXT = 32_000, 128, 4096
MOST_HEADS = 1024
CLOSE_ENOUGH = 0.1
# Widths are multiples of this, so that small models can be met too: their heads are narrower.
STEP = 32


def typical_shape(parameters: float) -> ModelConfig:
    """The Llama whose number of parameters comes nearest; UserError where none is near."""
    steps = range(1, MOST_HEADS * HEAD_WIDTH // STEP)
    above = bisect_left(steps, parameters, key=lambda step: num_parameters(_llama(step)))
    near = [_llama(steps[place]) for place in (above - 1, above) if 0 <= place < len(steps)]
    best = min(near, key=lambda config: abs(num_parameters(config) - parameters))
    if abs(num_parameters(best) / parameters - 1) > CLOSE_ENOUGH:
        raise UserError(f"{parameters:g} parameters: no usual shape has so many; give a model or its config.json")
    return best


def _llama(step: int) -> ModelConfig:
    width = STEP * step
    layers = max(1, round(width / HEAD_WIDTH))
    heads = max(1, width // HEAD_WIDTH)
    while width % heads or width // heads % 2:  # the next number that divides the width into even heads
        heads -= 1
    return ModelConfig(
        vocab_size=VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        max_positions=CONTEXT,
        tied_embeddings=False,
    )
