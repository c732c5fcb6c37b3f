"""fp32, bf16 and fp16: autocast for the matrix products, and the loss scale that fp16 needs.

Autocast runs products in 16 bits and keeps weights, gradients and moments in fp32 (Micikevicius et al., 2018). fp16
has too few exponents for small gradients, so the loss is multiplied by a scale that the gradient is divided by again;
the scale is halved when a gradient overflows and doubled after a long time without. bf16 and fp32 have a fixed scale
of 1. Scales are powers of two: multiplying and dividing by them rounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trivium.runtime import Precision

# The loop's losses are sums, so the gradient that flows back from one target does not depend on how many there are;
# for a mean over 4096 targets this would be the customary 2^16.
FIRST_FP16_SCALE = 2.0**4
# Below this the gradient itself is at fault and not fp16.
SMALLEST_FP16_SCALE = 2.0**-24
STEPS_BEFORE_GROWTH = 2000

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context to compute a loss in (backward belongs outside of it)."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@dataclass
class LossScale:
    """What the summed loss is multiplied by before backward."""

    value: float = 1.0
    good_steps: int = 0
    """Steps since the scale last changed."""
    dynamic: bool = False

    @classmethod
    def for_precision(cls, precision: Precision) -> LossScale:
        """The scale a run begins with."""
        return cls(FIRST_FP16_SCALE, 0, True) if precision == "fp16" else cls()

    @property
    def can_shrink(self) -> bool:
        """Whether an overflow may be the scale's fault."""
        return self.dynamic and self.value > SMALLEST_FP16_SCALE

    def overflowed(self) -> None:
        """A gradient was not finite: halve."""
        self.value, self.good_steps = self.value / 2, 0

    def succeeded(self) -> None:
        """A step was taken: double after many of them."""
        self.good_steps += 1
        if self.dynamic and self.good_steps >= STEPS_BEFORE_GROWTH:
            self.value, self.good_steps = self.value * 2, 0
