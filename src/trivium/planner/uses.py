"""How much a use of a model computes at once, told from what the user gives, before anything but a config is read.

Texts are counted in tokens without their tokenizer: a token of running text or code is three bytes or more, so
bytes / 3 is seldom too few; a small vocabulary (single characters, say) is taken to need a token for each byte. What is
read together follows the batching of `generation/` (its test compares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.planner.allocator import Device
from trivium.planner.inference import evaluation_memory, generation_memory
from trivium.planner.memory import MemoryPlan
from trivium.quantization.schemes import Scheme
from trivium.runtime import Precision

BYTES_PER_TOKEN = 3
SMALL_VOCABULARY = 2048
# Positions that scoring and embedding read at a time, unless one text is longer.
TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Use:
    """What is computed at once: texts that are read whole, or, with `new_tokens`, continued or answered."""

    rows: int
    length: int
    """Positions read of each row: its prompt, text or source."""
    new_tokens: int = 0
    num_beams: int = 1
    kv_int8: bool = False
    """Keys and values kept in a byte each."""


def use_memory(
    config: ModelConfig, use: Use, precision: Precision, scheme: Scheme | None = None, *, device: str = "cpu"
) -> MemoryPlan:
    """What `use` of a model needs whose weights are in `precision`, or packed as `scheme` says."""
    kind: Device = "cuda" if device.startswith("cuda") else "cpu"
    if not use.new_tokens:
        return evaluation_memory(
            config, rows=use.rows, length=use.length, precision=precision, scheme=scheme, device=kind
        )
    answers = config.kind == "encoder-decoder"
    return generation_memory(
        config,
        rows=use.rows,
        prompt_length=1 if answers else use.length,
        new_tokens=use.new_tokens,
        precision=precision,
        scheme=scheme,
        num_beams=use.num_beams,
        source_length=use.length if answers else 0,
        kv_int8=use.kv_int8,
        device=kind,
    )


def num_tokens(config: ModelConfig, text: str) -> int:
    """About how many tokens a text has, rather too many than too few; at least 1."""
    per_token = BYTES_PER_TOKEN if config.vocab_size >= SMALL_VOCABULARY else 1
    return 1 + len(text.encode("utf-8", "replace")) // per_token


def writing(config: ModelConfig, prompt: str, settings: GenerationSettings) -> Use:
    """One prompt continued, or one source answered."""
    length, new_tokens = _within(config, num_tokens(config, prompt)), settings.max_new_tokens
    if config.kind == "encoder-decoder":
        new_tokens = _within(config, new_tokens)
    else:  # together they have the context
        length = min(length, config.max_positions)
        new_tokens = min(new_tokens, max(1, config.max_positions - length))
    return Use(1, length, new_tokens, settings.num_beams, settings.kv_cache == "int8")


def talking(config: ModelConfig, settings: GenerationSettings, said: str | None) -> Use:
    """One question answered, or (None) a conversation that grows until the context is full."""
    if said is not None:
        return writing(config, said, settings)
    new_tokens = min(settings.max_new_tokens, max(1, config.max_positions // 2))
    return Use(1, max(1, config.max_positions - new_tokens), new_tokens, kv_int8=settings.kv_cache == "int8")


def reading(config: ModelConfig, texts: Sequence[str], *, windows: bool = False) -> Use:
    """Texts read whole, those of like length together; with `windows` cut where the context ends."""
    lengths = [num_tokens(config, text) for text in texts] or [1]
    longest = min(max(lengths), config.max_positions) if windows else _within(config, max(lengths))
    rows = sum(-(-length // longest) for length in lengths) if windows else len(lengths)
    return Use(min(rows, max(1, TOKENS_PER_BATCH // longest)), longest)


def _within(config: ModelConfig, length: int) -> int:
    """Where positions are learned there is no further one; other kinds go on."""
    return min(length, config.max_positions) if config.positions == "learned" else length
