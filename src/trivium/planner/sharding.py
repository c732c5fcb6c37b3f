"""What one device holds of a model that is cut up over several.

data    every device holds everything; gradients are summed through a bucket of bounded size.
fsdp    weights, gradients and optimizer states in equal shares (Rajbhandari et al., 2020, ZeRO stage 3):
        while a block is computed its weights are gathered whole, those of the next block already on their way, and the
        gradient of one block is whole until it is scattered. What is largest counts: a block, or the table of tokens.
tensor  heads, MLP and vocabulary in shares (Shoeybi et al., 2019): what a device then computes is itself a model, with
        fewer heads, a narrower MLP and fewer ids on the same residual stream, whose norms, output biases and positions
        every device holds. Key/value heads that are fewer than the devices are held more than once. So every formula
        for one device holds for one of several: of `tensor_share(config, ways)`.

Invariants its test checks: shares by hand; the tensor shares of a model whose sizes divide add up to it and the
parameters that are held by all.
"""

from __future__ import annotations

from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters

# Sums of gradients are sent in pieces of this size (`training/distributed.py`).
BUCKET_BYTES = 32 << 20
# Blocks whose weights are whole at the same time: the one computed and the next.
GATHERED = 2


def tensor_share(config: ModelConfig, ways: int) -> ModelConfig:
    """The model that one of `ways` devices computes; UserError where its heads cannot be dealt out evenly."""
    if ways == 1:
        return config
    if config.heads % ways:
        divisors = [n for n in range(2, config.heads + 1) if config.heads % n == 0]
        raise UserError(
            f"tensor_ways={ways} does not divide the {config.heads} heads of this model: choose of "
            f"{', '.join(map(str, divisors))}"
            if divisors
            else f"tensor_ways={ways}: this model has one head"
        )
    kv_heads = max(1, config.kv_heads // ways)
    if config.kv_heads > ways and config.kv_heads % ways:
        raise UserError(
            f"tensor_ways={ways} does not divide the {config.kv_heads} key/value heads of this model: choose a divisor"
        )
    return config.model_copy(
        update={
            "heads": config.heads // ways,
            "kv_heads": kv_heads,
            "mlp_width": -(-config.mlp_width // ways),
            "vocab_size": -(-config.vocab_size // ways),
        }
    )


def largest_unit_parameters(config: ModelConfig) -> int:
    """Parameters of what is gathered at once: the largest block, or the table of tokens."""
    fewer = {"decoder_layers": config.decoder_layers - 1} if config.decoder_layers else {"layers": config.layers - 1}
    block = num_parameters(config) - num_parameters(config.model_copy(update=fewer))
    return max(block, config.vocab_size * config.width)


def share(num_bytes: int, ways: int) -> int:
    """One of `ways` equal parts, rounded up."""
    return -(-num_bytes // ways)
