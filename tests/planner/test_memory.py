"""The plan of a training step, against the bytes that a real step's tensors hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from planner.live_bytes import most_live_bytes
from trivium.data.batch import IGNORED, Batch
from trivium.models.build import build_model, set_gradient_checkpointing
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner import memory
from trivium.planner.memory import MemoryPlan, estimate, fits
from trivium.runtime import Precision, Runtime
from trivium.training import cross_entropy
from trivium.training.distributed import Peers
from trivium.training.gradients import GradientMaker
from trivium.training.optimizer import AdamW, trainable_parameters
from trivium.training.settings import TrainingSettings
from trivium.training.token_objective import TokenObjective

ROWS, LENGTH, SOURCE = 4, 96, 160
GPT2: dict[str, Any] = {
    "norm": "layernorm",
    "mlp": "plain",
    "positions": "learned",
    "bias": "all",
    "activation": "gelu_tanh",
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "gpt2": GPT2,
    "bert": {"kind": "encoder", **GPT2, "norm_placement": "post", "embedding_norm": True, "head_hidden": "activation"},
    "t5": {"kind": "encoder-decoder", "positions": "relative", "attention_scale": 1.0},
    "bart": {"kind": "encoder-decoder", **GPT2, "norm_placement": "post", "embedding_norm": True},
}


def config_of(shape: str, **changes: Any) -> ModelConfig:
    size = {"vocab_size": 1024, "width": 192, "layers": 3, "heads": 4, "max_positions": 256}
    return ModelConfig(**{**size, **SHAPES[shape], **changes})


def batch_for(config: ModelConfig) -> tuple[Batch, int]:
    """A batch, and how many targets it has."""
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH))
    targets = ids.clone()
    if config.kind == "encoder":
        targets[:, LENGTH // 6 :] = IGNORED
    source = torch.randint(0, config.vocab_size, (ROWS, SOURCE)) if config.kind == "encoder-decoder" else None
    return Batch(ids, targets, source_ids=source), int((targets != IGNORED).sum())


def train_a_step(config: ModelConfig, batch: Batch, precision: Precision, checkpointing: bool) -> None:
    """One step of two micro-batches, from building the model on."""
    model = build_model(config)
    set_gradient_checkpointing(model, checkpointing)
    parameters = trainable_parameters(model)
    optimizer = AdamW(parameters, TrainingSettings(steps=1))
    runtime = Runtime(precision=precision)
    peers = Peers(runtime)
    maker = GradientMaker(model, TokenObjective(), list(parameters.values()), runtime, peers, 2 * ROWS)
    maker.make([batch, batch], 0)
    optimizer.step(1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_of_a_step(shape: str, precision: Precision, checkpointing: bool) -> None:
    config = config_of(shape)
    batch, targets = batch_for(config)
    live = most_live_bytes(lambda: train_a_step(config, batch, precision, checkpointing))
    plan = estimate(
        config,
        rows_per_micro_batch=ROWS,
        sequence_length=LENGTH,
        source_length=SOURCE if config.kind == "encoder-decoder" else 0,
        targets=targets,
        precision=precision,
        gradient_checkpointing=checkpointing,
    )
    assert plan.tensors_bytes == pytest.approx(live, rel=0.08), plan.to_dict()
    # Broken controls: a plan without one of its larger parts is seen.
    for part in ("weights_bytes", "gradients_bytes", "optimizer_bytes"):
        assert plan.tensors_bytes - getattr(plan, part) != pytest.approx(live, rel=0.08), part


def test_weight_copies_of_autocast() -> None:
    config = config_of("llama")
    fp32, bf16 = (
        estimate(config, rows_per_micro_batch=1, sequence_length=8, precision=precision).weights_bytes
        for precision in ("fp32", "bf16")
    )
    matrices = sum(p.numel() for p in build_model(config).stack.blocks.parameters() if p.ndim == 2)
    assert fp32 == 4 * num_parameters(config)
    assert bf16 - fp32 == 2 * matrices


def test_the_chunks_are_those_of_the_loss() -> None:
    for name in ("LOGITS_BYTES", "SOFTMAX_BYTES", "MIN_CHUNK_TOKENS", "MAX_FP16_CHUNK_TOKENS"):
        assert getattr(memory, name) == getattr(cross_entropy, name), name


def test_parts_add_up() -> None:
    plan = estimate(config_of("llama"), rows_per_micro_batch=4, sequence_length=64)
    facts = plan.to_dict()
    assert facts.pop("peak_bytes") == sum(facts.values()) == plan.peak_bytes
    assert json.loads(json.dumps(facts)) == facts
    assert fits(plan, plan.peak_bytes) and not fits(plan, plan.peak_bytes - 1)
    assert plan.optimizer_bytes == 2 * plan.gradients_bytes
    assert plan.tensors_bytes == plan.peak_bytes - plan.framework_bytes - plan.allocator_bytes


def plan_of(shape: str = "llama", rows: int = 8, length: int = 128, **more: Any) -> MemoryPlan:
    known = ("precision", "gradient_checkpointing", "source_length", "targets", "device", "trainable_parameters")
    arguments = {key: more.pop(key) for key in known if key in more}
    return estimate(config_of(shape, **more), rows_per_micro_batch=rows, sequence_length=length, **arguments)


def test_relations() -> None:
    def peak(shape: str = "llama", **more: Any) -> int:
        return plan_of(shape, **more).peak_bytes

    assert peak() < peak(layers=4) < peak(layers=5)
    assert peak() < peak(rows=16) == peak(rows=16, max_positions=4096)
    assert peak(precision="bf16") < peak()
    assert peak(gradient_checkpointing=True) < peak()
    assert peak(vocab_size=8192) > peak()
    assert peak("bert", targets=8) < peak("bert")
    assert peak("t5", source_length=64) < peak("t5") == peak("t5", source_length=128) < peak("t5", source_length=256)
    few = plan_of(trainable_parameters=1000)
    assert few.gradients_bytes == 4000 and few.optimizer_bytes == 8000
    assert plan_of(device="cuda").framework_bytes == 0


def test_a_model_of_seventy_billion_parameters_is_planned_at_once() -> None:
    sizes = {"vocab_size": 128256, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "mlp_width": 28672}
    config = ModelConfig(**sizes, max_positions=8192, tied_embeddings=False)
    plan = estimate(config, rows_per_micro_batch=1, sequence_length=8192, precision="bf16", gradient_checkpointing=True)
    assert plan.weights_bytes // 4 > 70e9 and plan.optimizer_bytes == 8 * num_parameters(config)
