"""Rotary positions stretched beyond the length they were learned for: the settings (the arithmetic: `positions.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trivium.config import Settings

RopeScalingMethod = Literal["linear", "ntk", "dynamic", "yarn", "llama3"]


class RopeScaling(Settings):
    """How wavelengths are changed so that `factor` times as many positions can be told apart."""

    method: RopeScalingMethod
    """`linear`: positions divided by the factor (Chen et al., 2023); `ntk`: a larger base; `dynamic`: a base that grows
    with the longest text of a batch, so that texts side by side, or cut into cached pieces, differ from texts alone;
    `yarn` (Peng et al., 2023) and `llama3`: short wavelengths kept, long ones divided."""
    factor: float = Field(ge=1, le=1e6, allow_inf_nan=False)
    """How many times as long."""
    original_max_positions: int = Field(default=0, ge=0)
    """The length they were learned for (needed by dynamic, yarn and llama3)."""
    low_frequency_factor: float = Field(default=1.0, gt=0)
    """llama3: wavelengths longer than the original length over this are divided whole."""
    high_frequency_factor: float = Field(default=4.0, gt=0)
    """llama3: wavelengths shorter than the original length over this are kept."""
    beta_fast: float = Field(default=32.0, gt=0, le=1e9)
    """yarn: pairs that turn at least so often within the original length are kept."""
    beta_slow: float = Field(default=1.0, gt=0, le=1e9)
    """yarn: pairs that turn at most so often are divided whole."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn: what cosines and sines are multiplied by; null: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: whether the bounds between kept and divided pairs are rounded to whole pairs."""

    @model_validator(mode="after")
    def _has_original_length(self) -> RopeScaling:
        if self.method in ("dynamic", "yarn", "llama3") and not self.original_max_positions:
            raise ValueError(f"method={self.method} needs original_max_positions")
        if self.method == "yarn" and self.beta_fast <= self.beta_slow:
            raise ValueError("beta_fast must be above beta_slow")
        if self.method == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError("high_frequency_factor must be above low_frequency_factor")
        return self
