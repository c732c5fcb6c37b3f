"""The textbook arithmetic of memory, by name: bytes per parameter times parameters.

To store a model in fp32: 4 bytes a parameter. To train it: 20 more, 8 for AdamW's two moments, 4 for the gradient and
about 8 for activations and temporaries; so 24 in all. For 1e9 parameters: 4 GB to hold, 24 GB to train.

Often "80 GB to train 1e9 parameters" is quoted instead. Nothing of the arithmetic above leads there: the 20 extra bytes
are bytes, and whoever multiplies them by 4 bytes once more (20 x 4 = 80) counts the size of a number twice. That 80 GB
is also what a large card holds makes the figure sound familiar, but that is the size of a card, not a need of the
model.

Storing in fewer bits: 2 bytes in fp16 and bf16 (50 % less), 1 in int8 (75 % less), half a byte in int4; the scales of
groups come on top and are counted in `quantization/schemes.py`. The rule knows nothing of batch, context or
checkpointing: that is what the plan is for.
"""

from __future__ import annotations

BYTES_TO_STORE = 4
BYTES_MORE_TO_TRAIN = {"optimizer": 8, "gradients": 4, "activations": 8}
BYTES_TO_TRAIN = BYTES_TO_STORE + sum(BYTES_MORE_TO_TRAIN.values())
BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}


def by_precision(num_parameters: int) -> dict[str, int]:
    """Bytes of the weights alone in each precision: 4e9, 2e9, 2e9, 1e9 and 5e8 for 1e9 parameters."""
    return {name: -(-num_parameters * bits // 8) for name, bits in BITS.items()}


def rule_of_thumb(num_parameters: int) -> dict[str, int]:
    """Bytes to hold a model in fp32 (4 a parameter) and to train it with AdamW (24 a parameter)."""
    return {
        "inference_bytes": BYTES_TO_STORE * num_parameters,
        "training_bytes": BYTES_TO_TRAIN * num_parameters,
    }
