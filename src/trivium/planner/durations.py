"""How long a stage takes: its FLOPs over the rate the machine reaches, or its bytes over what memory gives.

Training is taken to be bound by matrix products: tokens/s = rate x utilisation x devices / FLOPs per token, where for
each learned token (f: forward FLOPs, w: those of f that are products with weights)
  forward               f; once more with gradient checkpointing
  backward              2 f; without the gradient of frozen weights 2 f - w
  dpo, ppo, grpo        f for the reference (but with a cached one), f for a reward model, 3 f for a second model of
                        values; the update as often as `updates_per_rollout`
Generation is bound by memory: each step reads all weights and the KV cache once, for all rows together, or by products
where rows are many; the slower of the two counts. Writing rollouts is such a generation.
Simple, since communication between devices, reading of data and evaluation on the way are left out, and since decoding
is taken to reach the limit; so hours are those of a run that goes well.

Invariants its test checks: FLOPs by hand and by `models/counts.py`; time falls as one over the devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivium.models.config import ModelConfig
from trivium.models.counts import flops_per_token, num_parameters
from trivium.planner.chinchilla import TOKENS_PER_PARAMETER
from trivium.planner.parts import Parts
from trivium.planner.settings import ROLLOUTS, PlanSettings
from trivium.planner.speed import Speed
from trivium.planner.stages import generated_length, row_length, texts_per_row
from trivium.planner.weights import stored_weights_bytes
from trivium.quantization.schemes import scheme_for

MILLION = 1_000_000


@dataclass(frozen=True)
class Duration:
    """An estimate for all devices together."""

    flops_per_token: int
    """Of everything that is computed for one token, as often as it is computed."""
    total_flops: int
    tokens: int
    """Tokens trained on, evaluated or generated."""
    tokens_per_second: float | None
    """None where the speed of the device is not known."""
    hours: float | None
    steps: int | None
    """Optimizer steps; None where nothing is learned."""
    decode_limit: float | None
    """Tokens/s at which generation is stopped by memory bandwidth or products; None for stages that write nothing."""


def duration(config: ModelConfig, settings: PlanSettings, phases: dict[str, Parts], speed: Speed | None) -> Duration:
    """The time of the run that `settings` describe; `phases` are those of its memory."""
    tokens = settings.tokens or (
        TOKENS_PER_PARAMETER * num_parameters(config) if settings.stage == "pretrain" else MILLION
    )
    flops = flops_of_token(config, settings)
    limit = None if speed is None else decode_limit(config, settings, phases, speed)
    seconds = None
    if speed is not None:
        computed = speed.flops(settings.precision) * settings.utilisation * settings.devices
        seconds = tokens * flops / computed
        if settings.stage in ("generate", "serve"):
            seconds = tokens / limit if limit else None
        elif settings.stage in ROLLOUTS and limit:
            seconds += tokens * generated_length(config, settings) / row_length(config, settings) / limit
    return Duration(
        flops_per_token=flops,
        total_flops=tokens * flops,
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else None,
        hours=seconds / 3600 if seconds else None,
        steps=-(-tokens // tokens_per_step(config, settings)) if settings.trains else None,
        decode_limit=limit,
    )


def flops_of_token(config: ModelConfig, settings: PlanSettings) -> int:
    """FLOPs of everything that is computed for one token of the stage."""
    length = row_length(config, settings)
    forward, products = flops_per_token(config, length), flops_per_token(config, 0)
    if not settings.trains:
        return forward
    update = forward * (4 if settings.gradient_checkpointing else 3)
    if settings.peft == "last_layers":
        backward = flops_per_token(config.model_copy(update=_last(config, settings.last_layers)), length)
        update = forward + backward * (3 if settings.gradient_checkpointing else 2)
    elif settings.peft != "none":
        update -= products
    beside = 0
    if settings.stage == "dpo" and not settings.cached_reference:
        beside = forward
    if settings.stage in ROLLOUTS:
        update *= settings.updates_per_rollout
        beside = forward * (2 if settings.reward_model else 1)
        if settings.stage == "ppo" and settings.value_model == "model":
            beside += 3 * forward * settings.updates_per_rollout
    return update + beside


def _last(config: ModelConfig, layers: int) -> dict[str, int]:
    """The change that leaves only the last blocks, those that a backward pass reaches."""
    if config.kind == "encoder-decoder":
        return {"decoder_layers": layers, "layers": 0}
    return {"layers": layers}


def decode_limit(config: ModelConfig, settings: PlanSettings, phases: dict[str, Parts], speed: Speed) -> float | None:
    """Tokens/s of generation by all devices, were nothing else in the way; None for stages that write nothing."""
    writing = phases.get("rollout") or phases.get(settings.stage)
    if settings.stage not in ("generate", "serve", *ROLLOUTS) or writing is None:
        return None
    length, new = row_length(config, settings), generated_length(config, settings)
    filled = 1 - new / length / 2  # of the cache, on average over the steps
    scheme = None if settings.base in (None, "fp32") else scheme_for(str(settings.base))
    weights = stored_weights_bytes(config, settings.precision, scheme) / settings.tensor_ways
    read = weights + filled * writing.kv_cache_bytes
    rows, copies = settings.rows_per_micro_batch, settings.data_ways * settings.fsdp_ways
    beams = settings.num_beams if settings.stage == "generate" else 1
    products = rows * beams * flops_per_token(config, round(filled * length)) / settings.tensor_ways
    step = max(read / speed.read_bytes, products / (speed.flops(settings.precision) * settings.utilisation))
    return rows * copies / step


def tokens_per_step(config: ModelConfig, settings: PlanSettings) -> int:
    """Tokens of one optimizer step over all devices."""
    rows = settings.rows_per_step or settings.rows_per_micro_batch * settings.data_ways * settings.fsdp_ways
    return rows * row_length(config, settings) * texts_per_row(settings)
