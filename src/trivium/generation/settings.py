"""How to continue a prompt: `GenerationSettings` (read by `--help`, so torch is not imported here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trivium.config import Settings

# Below this, fp32 sampling is greedy to within rounding; dividing scores by less could overflow.
GREEDY_BELOW_TEMPERATURE = 1e-5

StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class GenerationSettings(Settings):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens to generate for each prompt; the model's context length may end a text sooner."""
    min_new_tokens: int = Field(default=0, ge=0)
    """An end-of-text token is not chosen before this many tokens; 0: it may come at once."""
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
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """No run of this many tokens appears twice in prompt and text (of an encoder-decoder: in the text); 0 is off."""
    num_beams: int = Field(default=1, ge=1, le=1024)
    """How many texts are followed side by side in search of the likeliest (beam search); 1 takes token after token."""
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    """Beam search compares log-probabilities divided by length to this power: above 0 favours longer texts, 0 is the
    plain log-probability."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends: true, with `num_beams` finished texts; false, once the best text that still grows scores
    lower than all of them; never, once it could not score higher at any length."""
    suppressed_ids: tuple[TokenId, ...] = Field(default=(), max_length=4096)
    """Token ids that are never chosen."""
    forced_bos_id: TokenId | None = None
    """The id every target of an encoder-decoder begins with (the language, in a multilingual translator); null: the
    model chooses."""
    forced_eos_id: TokenId | None = None
    """The id that ends the target of an encoder-decoder where `max_new_tokens` ends it; null: the model chooses."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Same seed, prompts and settings: same texts, however the prompts are batched."""
    stop: tuple[StopString, ...] = Field(default=(), max_length=32)
    """Texts that end the generation (one, or a list); the result ends before the first that appears."""
    ignore_eos: bool = False
    """Go on after an end-of-text token, up to the token limit (to measure speed)."""
    add_bos: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt given as text starts with the beginning-of-text token: auto does as the tokenizer says.
    Prompts given as token ids are taken as they are."""
    speculate: int = Field(default=0, ge=0, le=64)
    """How many tokens of a decoder's text are guessed ahead from the text itself and checked in one pass (prompt
    lookup), which is faster where texts repeat themselves; the tokens are the same. 0: none."""
    kv_cache: Literal["model", "int8"] = "model"
    """How a decoder's keys and values are kept: as the model computes them, or in a byte each (a quarter of the memory
    of fp32), which changes the scores a little."""
    rows_per_batch: int = Field(default=32, ge=1)
    """Most texts (each beam is one) that are continued together; more is faster and needs more memory for the KV
    cache."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _beams_go_their_own_way(self) -> GenerationSettings:
        if self.num_beams > 1 and (self.speculate or self.kv_cache != "model"):
            raise ValueError("beam search neither guesses ahead nor keeps int8: set speculate=0 and kv_cache=model")
        if self.num_beams > 1 and not self.greedy:
            raise ValueError(
                f"num_beams={self.num_beams} searches for the likeliest text and temperature={self.temperature:g} "
                "draws one: set temperature=0, or num_beams=1"
            )
        return self

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW_TEMPERATURE
