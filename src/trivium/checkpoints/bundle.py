"""A model with all that is needed to use it: `load("runs/quickstart/pretrain/model").generate("def main():").text`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.checkpoints.directory import load_model_directory, read_eos_ids, save_model_directory
from trivium.checkpoints.resolve import resolve_model
from trivium.config import build_settings
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.transformer import Decoder
from trivium.runtime import Precision

if TYPE_CHECKING:
    import torch

    from trivium.generation.generate import Generation
    from trivium.generation.settings import GenerationSettings
    from trivium.metrics.perplexity import Perplexity
    from trivium.tokenizer.bpe import Tokenizer

# Our names of the precisions, and torch's.
PRECISIONS: dict[str, Precision] = {
    "fp32": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
}


@dataclass(frozen=True)
class TokenLogprob:
    """How well one token of a text was predicted from those before it."""

    token: int
    """Its id."""
    text: str
    """Its text; of a character cut in two, U+FFFD."""
    logprob: float
    """Natural logarithm of its probability (nats, at most 0)."""


@dataclass(frozen=True)
class Bundle:
    """Model, tokenizer and config that belong together."""

    model: Decoder
    """The model; `bundle.model(ids_BT)` gives logits (B, T, V)."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    config: ModelConfig
    """Its shape."""
    eos_ids: tuple[int, ...] = ()
    """The ids that end a text; empty: the tokenizer's end-of-text token."""

    def save(self, directory: str | Path, *, dtype: Precision = "fp32") -> None:
        """Write a model directory; see `directory.save_model_directory`."""
        save_model_directory(directory, self.model, self.config, self.tokenizer, dtype=dtype, eos_ids=self.eos_ids)

    def generate(
        self,
        prompt: str | Sequence[int],
        settings: GenerationSettings | None = None,
        *,
        stream: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> Generation:
        """Continue one prompt. Settings come as an object or by name: `generate("a", temperature=0.8, top_p=0.9)`.

        `stream` is called with each new piece of text. Raises UserError for settings that do not exist.
        """
        from trivium.generation.generate import generate
        from trivium.generation.settings import GenerationSettings

        base = {} if settings is None else settings.model_dump()
        chosen = build_settings(GenerationSettings, {**base, **changes}, "generate")
        (generation,) = generate(
            self.model,
            self.tokenizer,
            [prompt],
            chosen,
            stream=None if stream is None else lambda _, piece: stream(piece),
            eos_ids=self.eos_ids or None,
        )
        return generation

    def logprobs(self, text: str) -> list[TokenLogprob]:
        """The log-probability of each token of `text` given those before it; see `generation/scoring.py`."""
        from trivium.generation.prompts import document_start
        from trivium.generation.scoring import token_logprobs

        ids = self.tokenizer.encode(text)
        logprobs = token_logprobs(self.model, ids, prefix_id=document_start(self.tokenizer))
        return [
            TokenLogprob(token, self.tokenizer.decode([token]), logprob)
            for token, logprob in zip(ids, logprobs.tolist(), strict=True)
        ]

    def perplexity(self, text: str) -> Perplexity:
        """Perplexity and bits per byte of `text`; UserError when it is empty."""
        from trivium.generation.scoring import score_text

        return score_text(self.model, self.tokenizer, text).perplexity()


def load(
    name: str | Path,
    *,
    dtype: Precision | torch.dtype | str = "fp32",
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> Bundle:
    """Open a model: a model directory, a run directory, or a hub id.

    `dtype` is what its weights are converted to: fp32, bf16 or fp16 (or torch's names of them). `quantize` has its
    place here but no method yet. Raises UserError that names what is wrong.
    """
    if quantize is not None:
        raise UserError(f"quantize={quantize!r}: no model can be loaded quantized yet; leave it out")
    precision = PRECISIONS.get(str(dtype).removeprefix("torch."))
    if precision is None:
        raise UserError(f"dtype is {dtype!r}: use fp32, bf16 or fp16")
    path = resolve_model(name)
    model, tokenizer, config = load_model_directory(path, dtype=precision, device=device)
    return Bundle(model, tokenizer, config, read_eos_ids(path))
