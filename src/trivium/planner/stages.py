"""The memory of every stage of a model's life, made of the memory of one model's step (`memory.py`, `inference.py`).

pretrain, finetune  one model is trained; under `peft` most of it is frozen, and may be stored in fewer bits
reward              the same with one number for a head, on pairs: two texts a row
dpo                 the same on pairs, and beside it the frozen reference, unless its log-probabilities were computed
                    beforehand or it is the policy without its adapter (Rafailov et al., 2023)
ppo, grpo           two phases that take turns: rollouts are generated (KV cache), then learned from (activations); in
                    both the policy, its optimizer, the reference and the reward model are in memory, for ppo also what
                    tells values (Schulman et al., 2017; Shao et al., 2024). The fuller phase is the peak.
evaluate            one forward pass; generate, serve: a prompt is read, then tokens are added to the KV cache

Simple, since a reference's forward pass is taken to fit in what the policy's update needs afterwards, and since rows of
all models are equally long. Stages that this library does not have yet (reward, dpo, ppo, grpo, and peft) are formulas
that no run has measured. Invariants its test checks: each stage by hand from its parts; more rows, positions, layers or
bits never need less; shares of several devices.
"""

from __future__ import annotations

from dataclasses import replace

from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.activations import FP32, item_bytes
from trivium.planner.allocator import cuda_idle_bytes
from trivium.planner.inference import evaluation_memory, generation_memory
from trivium.planner.memory import autocast_bytes, estimate
from trivium.planner.parts import Parts
from trivium.planner.peft_counts import (
    LENGTHENING,
    added_parameters,
    extra_kept_bytes,
    num_trainable_parameters,
    unkept_bytes,
)
from trivium.planner.settings import ROLLOUTS, PlanSettings
from trivium.planner.sharding import BUCKET_BYTES, GATHERED, largest_unit_parameters, share, tensor_share
from trivium.planner.weights import stored_weights_bytes
from trivium.quantization.schemes import Scheme, scheme_for

OPTIMIZER_BYTES = {"adamw": 8, "sgd_momentum": 4, "sgd": 0}
USUAL_LENGTH = 2048
# What a CUDA process holds on its card before the first tensor: context, kernels and the libraries' workspaces. Stated
# by experience with recent cards and drivers; not measured by this project.
CUDA_CONTEXT_BYTES = 600 << 20
# Kept of each generated position: its id (8), the log-probabilities of policy and reference (4 each), its advantage (4)
# and whether it is learned from (1); ppo also keeps value and return (4 each).
ROLLOUT_BYTES = {"ppo": 29, "grpo": 21}


def stage_phases(config: ModelConfig, settings: PlanSettings) -> dict[str, Parts]:
    """What one device holds in each phase of the stage; most stages have one phase, of the stage's own name."""
    refuse_stage(config, settings)
    mine = tensor_share(config, settings.tensor_ways)
    if settings.stage in ROLLOUTS:
        update = _with_other_models(mine, settings, _training(mine, settings))
        phases = {"rollout": _rollout(mine, settings, update), "update": update}
    elif settings.stage == "evaluate":
        phases = {"evaluate": _evaluation(mine, settings)}
    elif settings.trains:
        parts = _training(mine, settings)
        phases = {settings.stage: _with_other_models(mine, settings, parts)}
    else:
        phases = {settings.stage: _generation(mine, settings)}
    return {name: _on_device(parts, mine, settings) for name, parts in phases.items()}


def refuse_stage(config: ModelConfig, settings: PlanSettings) -> None:
    """UserError where the model cannot be what the stage needs."""
    if settings.stage in ("generate", "serve", *ROLLOUTS) and config.kind == "encoder":
        raise UserError(
            f"stage={settings.stage} writes text, and this model is an encoder: choose finetune or evaluate"
        )
    length = row_length(config, settings)
    if settings.stage in ("generate", "serve", *ROLLOUTS) and settings.new_tokens >= length:
        raise UserError(
            f"new_tokens={settings.new_tokens} leave no room for a prompt in {length} positions: give a larger "
            "sequence_length"
        )
    if config.positions == "learned" and length > config.max_positions:
        raise UserError(
            f"sequence_length={length}, but the model has learned {config.max_positions} positions: give "
            f"{config.max_positions} at most"
        )


def row_length(config: ModelConfig, settings: PlanSettings) -> int:
    """Positions in a row."""
    return settings.sequence_length or min(config.max_positions, USUAL_LENGTH)


def generated_length(config: ModelConfig, settings: PlanSettings) -> int:
    """How many of them are generated."""
    return settings.new_tokens or max(1, row_length(config, settings) // 2)


def texts_per_row(settings: PlanSettings) -> int:
    """A pair is two texts."""
    return 2 if settings.stage in ("reward", "dpo") else 1


def trained_config(config: ModelConfig, settings: PlanSettings) -> ModelConfig:
    """The model as the stage trains it: a reward model has one number for a head."""
    return _scalar(config) if settings.stage == "reward" else config


def trained_parameters(config: ModelConfig, settings: PlanSettings) -> int:
    """How many numbers are learned, in all models of the stage together."""
    trained = num_trainable_parameters(trained_config(config, settings), settings)
    if settings.stage == "ppo":
        trained += num_parameters(_scalar(config)) if settings.value_model == "model" else config.width + 1
    return trained


# ------------------------------------------------------------------------------------------------------ one model


def _scalar(config: ModelConfig) -> ModelConfig:
    """The same model with one number on its last hidden state."""
    head = {"head": "scalar", "labels": (), "head_bias": False, "logit_scale": 1.0, "logit_softcap": 0.0}
    return config.model_copy(update=head)


def _training(config: ModelConfig, settings: PlanSettings) -> Parts:
    """The fullest moment of training one model."""
    model = trained_config(config, settings)
    rows = settings.rows_per_micro_batch * texts_per_row(settings)
    return _trained_model(model, settings, rows, num_trainable_parameters(model, settings))


def _trained_model(config: ModelConfig, settings: PlanSettings, rows: int, trained: int) -> Parts:
    item = item_bytes(settings.precision)
    length = row_length(config, settings) + (settings.virtual_tokens if settings.peft in LENGTHENING else 0)
    read = config
    if settings.peft == "last_layers":  # nothing is kept of the blocks before
        name = "decoder_layers" if config.kind == "encoder-decoder" else "layers"
        read = config.model_copy(update={name: settings.last_layers})
    step = Parts.of(
        estimate(
            read,
            rows_per_micro_batch=rows,
            sequence_length=length,
            source_length=settings.source_length,
            precision=settings.precision,
            gradient_checkpointing=settings.gradient_checkpointing,
            packed_documents=settings.packed_documents,
            targets=None if config.head == "lm" else 0,
        )
    )
    blocks = read.layers + read.decoder_layers
    at_once = 1 if settings.gradient_checkpointing else blocks
    tokens = rows * length
    own = extra_kept_bytes(config, settings, tokens, item) * at_once // blocks
    unkept = unkept_bytes(config, settings, tokens, item) * at_once
    logits = step.logits_bytes
    if settings.peft != "none":  # the head's gradient is not made
        logits -= config.vocab_size * config.width * FP32
    return step.changed(
        weights_bytes=_training_weights(config, settings),
        gradients_bytes=_gradients(config, settings, trained),
        optimizer_bytes=share(OPTIMIZER_BYTES[settings.optimizer] * trained, settings.fsdp_ways),
        activations_bytes=max(0, step.activations_bytes + own - unkept),
        logits_bytes=max(0, logits) if config.head == "lm" else 0,
    )


def _training_weights(config: ModelConfig, settings: PlanSettings) -> int:
    """Weights of a model in training on one device: trained ones in fp32, frozen ones as `base` says."""
    base = settings.base if settings.peft != "none" and settings.base is not None else "fp32"
    added = FP32 * added_parameters(config, settings)
    stored = stored_weights_bytes(config, "fp32", _scheme(base)) + added
    if settings.fsdp_ways > 1:
        return share(stored, settings.fsdp_ways) + _gathered(config, settings)
    if base == "fp32":
        return stored + autocast_bytes(config, settings.precision)
    return stored_weights_bytes(config, settings.precision, _scheme(base)) + added


def _gathered(config: ModelConfig, settings: PlanSettings) -> int:
    """Weights of cut-up models that are whole for a moment."""
    return GATHERED * largest_unit_parameters(config) * item_bytes(settings.precision)


def _gradients(config: ModelConfig, settings: PlanSettings, trained: int) -> int:
    """Gradients on one device, with what is summed or scattered over devices."""
    whole = FP32 * trained
    if settings.fsdp_ways > 1:
        return share(whole, settings.fsdp_ways) + min(whole, FP32 * largest_unit_parameters(config))
    return whole + (min(whole, BUCKET_BYTES) if settings.data_ways > 1 else 0)


def _scheme(base: str) -> Scheme | None:
    return None if base == "fp32" else scheme_for(base)


def _frozen_weights(config: ModelConfig, settings: PlanSettings) -> int:
    """A second model that is only read, on one device."""
    stored = stored_weights_bytes(config, settings.precision, _scheme(settings.base or "fp32"))
    return stored if settings.fsdp_ways == 1 else share(stored, settings.fsdp_ways) + _gathered(config, settings)


# --------------------------------------------------------------------------------------------------- several models


def _with_other_models(config: ModelConfig, settings: PlanSettings, policy: Parts) -> Parts:
    """The policy's training, and what stands beside it."""
    parts, copies = policy, 0
    alignment = settings.stage in ("dpo", *ROLLOUTS)
    cached = settings.stage == "dpo" and settings.cached_reference
    if alignment and settings.peft == "none" and not cached:
        copies += _frozen_weights(config, settings)
    if settings.stage in ROLLOUTS:
        if settings.reward_model:
            copies += _frozen_weights(_scalar(config), settings)
        parts = parts.changed(rollouts_bytes=_rollouts(config, settings))
    if settings.stage == "ppo":
        parts = _with_values(config, settings, parts)
    return parts.changed(weights_bytes=parts.weights_bytes + copies)


def _with_values(config: ModelConfig, settings: PlanSettings, parts: Parts) -> Parts:
    """ppo: a head for values, or a model that is trained as a whole beside the policy."""
    if settings.value_model == "head":
        learned = config.width + 1
        return parts.changed(
            weights_bytes=parts.weights_bytes + FP32 * learned,
            gradients_bytes=parts.gradients_bytes + FP32 * learned,
            optimizer_bytes=parts.optimizer_bytes + OPTIMIZER_BYTES[settings.optimizer] * learned,
        )
    whole = settings.model_copy(update={"peft": "none", "base": None})
    scalar = _scalar(config)
    other = _trained_model(scalar, whole, settings.rows_per_micro_batch, num_parameters(scalar))
    names = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes")
    return parts.changed(**{name: getattr(parts, name) + getattr(other, name) for name in names})


def _rollouts(config: ModelConfig, settings: PlanSettings) -> int:
    """Generated texts of one step on one device, until they have been learned from."""
    rows = share(settings.rows_per_step, settings.data_ways * settings.fsdp_ways) or settings.rows_per_micro_batch
    return rows * row_length(config, settings) * ROLLOUT_BYTES[settings.stage]


def _rollout(config: ModelConfig, settings: PlanSettings, update: Parts) -> Parts:
    """While texts are generated: all models and the optimizer's states, but gradients and activations are gone."""
    writing = _generation(config, settings)
    return replace(
        writing,
        weights_bytes=update.weights_bytes,
        optimizer_bytes=update.optimizer_bytes,
        rollouts_bytes=update.rollouts_bytes,
    )


# ------------------------------------------------------------------------------------------------------ only reading


def _evaluation(config: ModelConfig, settings: PlanSettings) -> Parts:
    plan = evaluation_memory(
        config,
        rows=settings.rows_per_micro_batch,
        length=row_length(config, settings),
        source_length=settings.source_length,
        precision=settings.precision,
        scheme=_inference_scheme(settings),
    )
    return _sharded(Parts.of(plan), config, settings)


def _generation(config: ModelConfig, settings: PlanSettings) -> Parts:
    new = generated_length(config, settings)
    prompt = max(1, row_length(config, settings) - new)
    translates = config.kind == "encoder-decoder"
    plan = generation_memory(
        config,
        rows=settings.rows_per_micro_batch,
        prompt_length=1 if translates else prompt,
        new_tokens=new,
        precision=settings.precision,
        scheme=_inference_scheme(settings),
        num_beams=settings.num_beams if settings.stage == "generate" else 1,
        source_length=(settings.source_length or prompt) if translates else 0,
        kv_int8=settings.kv_cache == "int8",
    )
    return _sharded(Parts.of(plan), config, settings)


def _sharded(parts: Parts, config: ModelConfig, settings: PlanSettings) -> Parts:
    """A reading model whose weights are cut up."""
    return parts if settings.fsdp_ways == 1 else replace(parts, weights_bytes=_frozen_weights(config, settings))


def _inference_scheme(settings: PlanSettings) -> Scheme | None:
    return None if settings.base in (None, "fp32") else scheme_for(str(settings.base))


def _on_device(parts: Parts, config: ModelConfig, settings: PlanSettings) -> Parts:
    """The figures of the device itself: the formulas before are those of a CPU."""
    if settings.device == "cpu":
        return parts
    tokens = settings.rows_per_micro_batch * texts_per_row(settings) * row_length(config, settings)
    largest = tokens * max(config.mlp_width, config.width) * item_bytes(settings.precision)
    slack = cuda_idle_bytes(parts.tensors_bytes, largest)
    return replace(parts, framework_bytes=CUDA_CONTEXT_BYTES, allocator_bytes=slack)
