"""How fast a model reads and writes here, and how fast this machine could at most.

Two figures are measured through `generate` itself, so that whatever makes it fast for a user counts: the time to the
first token, which is that of reading the prompts (prefill), and the pace of the tokens after it (decode), which is the
time of a whole text less that of its first token. A model that writes nothing is measured on its reading alone.

Each is told beside a limit. Reading is bound by arithmetic: its matrix products (`models/counts.py`, the causal half of
the scores) at the measured rate of products in the model's type. Writing is bound by memory: one step must read every
weight it multiplies by (in the bytes they are stored in, a looked-up table excepted) and the keys and values of every
row. A model that fits the processor's caches may write faster than that, and packed weights whose products run in a
faster type than the model's may read faster.

Invariants its tests check: the bytes of a step are those of the tensors that a forward pass touches; a model that is
made to wait is slower by as much.

Shapes: B rows, T prompt tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from trivium.errors import UserError
from trivium.generation.fast_stepper import FastStepper
from trivium.generation.generate import generate, stepper_for
from trivium.generation.mode import evaluating
from trivium.generation.settings import GenerationSettings
from trivium.kernels.native import native
from trivium.models.build import Model
from trivium.models.config import ModelConfig
from trivium.models.counts import flops_per_token
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

# Seed of the prompts: random ids, as what they say does not matter for speed.
SEED = 0
# Rows that are read together with others must not be few because of the settings' default.
MOST_ROWS = 1024


@dataclass(frozen=True)
class Spread:
    """What repeats of one measurement gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Speed:
    """How fast `rows` texts are read and continued together."""

    rows: int
    prompt_tokens: int
    """Length of each prompt."""
    new_tokens: int
    """Tokens written after each, 0 where the model writes none."""
    first_token_seconds: Spread
    """From the call to the first token of every row; of a model that writes nothing, to its result."""
    prefill_tokens_per_second: Spread
    """Prompt tokens of all rows over that time."""
    decode_tokens_per_second: Spread | None
    """Tokens of all rows after their first, over the time they took."""


@dataclass(frozen=True)
class Limits:
    """What this machine allows at most, for the same work."""

    prefill_flops: float
    """Operations of the matrix products of reading all prompts."""
    prefill_tokens_per_second: float | None
    """None: the rate of products in the model's type is not known."""
    decode_bytes: int
    """Bytes of weights, keys and values that a step reads, in the middle of the text."""
    decode_tokens_per_second: float | None
    """None: the model writes nothing."""


def writes(config: ModelConfig) -> bool:
    """Whether the model generates text."""
    return config.kind != "encoder" and config.head == "lm"


def code_paths(model: Model) -> dict[str, str]:
    """Which code decodes: {"step": "native" or "torch", "kernels": the level of ours, or "none"}."""
    built = native()
    fast = isinstance(model, Decoder) and isinstance(stepper_for(model), FastStepper)
    return {"step": "native" if fast else "torch", "kernels": "none" if built is None else built.name}


def measure_speed(
    model: Model,
    tokenizer: Tokenizer,
    *,
    rows: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int = 5,
    settings: GenerationSettings | None = None,
    progress: Progress = SILENT,
) -> Speed:
    """Read `rows` prompts of `prompt_tokens` random ids and write `new_tokens` (at least 2) after each, `repeats`
    times.

    One round before them is not counted. `settings` says how (greedy, the cache's storage, ...); lengths and the end
    of text in it are replaced. Raises UserError when the model has too few positions.
    """
    refuse_too_long(model.config, prompt_tokens, new_tokens)
    numbers = torch.Generator().manual_seed(SEED)
    shape = (rows, prompt_tokens)
    vocabulary = min(tokenizer.vocab_size, model.config.vocab_size)
    prompts_BT = torch.randint(0, vocabulary, shape, generator=numbers).tolist()
    run = _run(model, tokenizer, prompts_BT, settings or GenerationSettings())
    firsts: list[float] = []
    wholes: list[float] = []
    progress.start(f"measuring {rows} x {prompt_tokens} tokens", repeats + 1, "rounds")
    for _ in range(repeats + 1):
        firsts.append(_seconds(lambda: run(1)))
        wholes.append(_seconds(lambda: run(new_tokens)) if writes(model.config) else 0.0)
        progress.advance()
    progress.finish()
    firsts, wholes = firsts[1:], wholes[1:]
    decode = None
    if writes(model.config):
        tokens = rows * (new_tokens - 1)
        pairs = zip(firsts, wholes, strict=True)
        # Where something disturbed the first call of a round so much, that round's pace is at least this.
        decode = Spread.of([tokens / (whole - first if whole > first else whole) for first, whole in pairs])
    return Speed(
        rows=rows,
        prompt_tokens=prompt_tokens,
        new_tokens=0 if decode is None else new_tokens,
        first_token_seconds=Spread.of(firsts),
        prefill_tokens_per_second=Spread.of([rows * prompt_tokens / first for first in firsts]),
        decode_tokens_per_second=decode,
    )


def limits(
    model: Model,
    speed: Speed,
    *,
    flops_per_second: float | None,
    bytes_per_second: float,
    settings: GenerationSettings | None = None,
) -> Limits:
    """The limits of what `speed` tells of, on a machine of these rates."""
    config = model.config
    flops = speed.rows * prefill_flops(config, speed.prompt_tokens)
    tokens = speed.rows * speed.prompt_tokens
    step_bytes, decode = 0, None
    if speed.decode_tokens_per_second is not None:
        kv = (settings or GenerationSettings()).kv_cache
        own = speed.new_tokens / 2 if config.kind == "encoder-decoder" else speed.prompt_tokens + speed.new_tokens / 2
        step_bytes = read_weight_bytes(model)
        step_bytes += speed.rows * kv_bytes(
            config, own, model.dtype, quantized=kv == "int8", source=speed.prompt_tokens
        )
        decode = speed.rows * bytes_per_second / step_bytes
    prefill = None if flops_per_second is None else tokens * flops_per_second / flops
    return Limits(flops, prefill, step_bytes, decode)


def prefill_flops(config: ModelConfig, prompt_tokens: int) -> float:
    """Operations of reading one prompt up to the scores of the first new token."""
    headless = config.model_copy(update={"head": "none", "head_hidden": "none"})
    if config.kind == "encoder":
        return prompt_tokens * flops_per_token(config, prompt_tokens)
    if config.kind == "decoder":
        mean_context = (prompt_tokens + 1) // 2
        head = flops_per_token(config, 1) - flops_per_token(headless, 1)
        return prompt_tokens * flops_per_token(headless, mean_context) + head
    encoder = headless.model_copy(update={"kind": "encoder"})
    # The source's keys and values are made once for every position of it; the target has one token, alone.
    source_keys = 4 * config.width * config.kv_heads * config.head_width * config.decoder_layers
    others = 4 * config.heads * config.head_width * config.decoder_layers * (prompt_tokens - 1)
    encoding = flops_per_token(encoder, prompt_tokens)
    target_token = 2 * flops_per_token(config, prompt_tokens) - encoding - source_keys - others
    return prompt_tokens * (encoding + source_keys) + target_token


def read_weight_bytes(model: Model) -> int:
    """Bytes of the weights, as they are stored, that writing one token multiplies by."""
    config = model.config
    looked_up: set[int] = set()
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) or module is model.embedding
        tied = module is model.embedding and config.head == "lm" and config.tied_embeddings
        of_the_source = config.kind == "encoder-decoder" and (
            name.partition(".")[0] == "encoder" or name.endswith((".cross.key", ".cross.value"))
        )
        if (is_table and not tied) or of_the_source:
            looked_up.update(id(tensor) for tensor in (*module.parameters(), *module.buffers()))
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in looked_up)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are stored; what is shared counts once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def kv_bytes(
    config: ModelConfig, positions: float, dtype: torch.dtype, *, quantized: bool = False, source: int = 0
) -> int:
    """Bytes of keys and values that one row's step reads at so many positions (of an encoder-decoder: and of so many of
    the source); with `quantized` those in int8 with an fp32 scale for each vector."""
    vector = config.head_width + 4 if quantized else config.head_width * dtype.itemsize
    layers = config.decoder_layers or config.layers
    everything = len(config.full_attention_layers) if config.sliding_window else layers
    in_window = (layers - everything) * min(positions, config.sliding_window)
    crossing = config.decoder_layers * source
    return round(2 * config.kv_heads * vector * (everything * positions + in_window + crossing))


def _run(
    model: Model, tokenizer: Tokenizer, prompts: list[list[int]], settings: GenerationSettings
) -> Callable[[int], object]:
    """A function that reads the prompts and writes so many tokens (where the model writes)."""
    if not writes(model.config) or isinstance(model, Encoder):
        ids_BT = torch.tensor(prompts, device=model.device)

        @torch.inference_mode()
        def read(new_tokens: int) -> object:
            with evaluating(model):
                result = model(ids_BT)
            if ids_BT.is_cuda:
                torch.cuda.synchronize(ids_BT.device)
            return result

        return read

    def write(new_tokens: int) -> object:
        changes = {"max_new_tokens": new_tokens, "ignore_eos": True, "rows_per_batch": MOST_ROWS, "stop": ()}
        results = generate(model, tokenizer, prompts, settings.model_copy(update=changes))
        assert all(len(result.tokens) == new_tokens for result in results)
        return results

    return write


def refuse_too_long(config: ModelConfig, prompt_tokens: int, new_tokens: int) -> None:
    """UserError when the model cannot hold what is asked for."""
    if config.kind == "decoder" and writes(config):
        needed, words = prompt_tokens + new_tokens, f"{prompt_tokens} prompt tokens and {new_tokens} new ones"
    else:
        needed, words = max(prompt_tokens, new_tokens), f"{max(prompt_tokens, new_tokens)} tokens"
    bounded = config.kind != "encoder-decoder" or config.positions == "learned"
    if bounded and needed > config.max_positions:
        raise UserError(f"{words} are more than the {config.max_positions} positions of the model: choose fewer")
    if new_tokens < 2 and writes(config):
        raise UserError(f"new tokens: the pace needs at least 2, not {new_tokens}")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
