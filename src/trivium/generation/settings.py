"""How to continue a prompt: `GenerationSettings` (read by `--help`, so torch is not imported here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trivium.config import Settings

# Below this, fp32 sampling is greedy to within rounding; dividing scores by less could overflow.
GREEDY_BELOW_TEMPERATURE = 1e-5

StopString = Annotated[str, Field(min_length=1, max_length=256)]


class GenerationSettings(Settings):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens to generate for each prompt; the model's context length may end a text sooner."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Scores are divided by this before sampling. 0 always takes the likeliest token (greedy), and then top_k, top_p,
    min_p and seed have no effect; 1 samples from the model's own distribution."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens only; 0 keeps all."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    """Sample among the smallest set of likeliest tokens whose probability reaches this; 1 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Drop tokens less likely than this fraction of the likeliest one; 0 keeps all."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Above 1 makes tokens that the prompt or the text already holds less likely (CTRL, Keskar et al. 2019); 1 is
    off."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Same seed, prompts and settings: same texts, however the prompts are batched."""
    stop: tuple[StopString, ...] = Field(default=(), max_length=32)
    """Texts that end the generation (one, or a list); the result ends before the first that appears."""
    ignore_eos: bool = False
    """Go on after an end-of-text token, up to the token limit (to measure speed)."""
    add_bos: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt given as text starts with the beginning-of-text token: auto does as the tokenizer says.
    Prompts given as token ids are taken as they are."""
    rows_per_batch: int = Field(default=32, ge=1)
    """Most prompts that are continued together; more is faster and needs more memory for the KV cache."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW_TEMPERATURE
