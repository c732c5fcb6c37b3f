"""One contender of `benchmarks/training.py`: a process that stays warm and trains so many steps whenever it is told to.

Each contender has a process of its own, so that what one does for its speed (allocator, precision of products) cannot
help or hurt another, and so that its peak memory is its own. It reads commands from stdin (`run N`, `quit`) and answers
each with one JSON object on stdout; files go to the current directory.

Trivium runs as it runs for a user: `prepare_process`, then the steps of the real loop, with its clipping, schedule and
log. A peer runs the loop its users write, at its best: dropout off, fused attention, fused AdamW, one clipping call.
`gpt2-defaults` is what a user gets who sets nothing: the configuration and the optimizer as their constructors make
them, in fp32.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from workers.process import stdout_for_answers, tell

from trivium.training.memory import peak_bytes

Step = Callable[[], float]
"""Takes one optimizer step and returns its loss, nats per token."""

# So many different batches go round, drawn from the same seed for every contender.
BATCHES = 4
LEARNING_RATE = 3e-4
CLIP_NORM = 1.0
DOCUMENTS_PER_PACKED_ROW = 4
LORA_RANK = 16


@dataclass(frozen=True)
class Job:
    """What a worker is to be."""

    contender: str
    mode: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    length: int
    """Positions in a row."""
    rows: int
    """Rows in a step."""
    threads: int = 0
    """0: as many as torch chooses."""

    @property
    def uses_bf16(self) -> bool:
        """Whether matrix products run under bf16 autocast."""
        return self.mode in ("bf16", "compiled")

    @property
    def uses_lora(self) -> bool:
        """Whether all weights are frozen and LoRA is trained beside every linear layer of the blocks."""
        return self.contender.endswith("lora")


def token_rows(job: Job) -> list[torch.Tensor]:
    """The batches: (rows, length + 1) ids, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    shape = (job.rows, job.length + 1)
    return [torch.randint(0, job.vocab_size, shape, generator=generator) for _ in range(BATCHES)]


def our_config(job: Job, family: str) -> Any:
    """Trivium's model in the shape of a family: a Llama, or a GPT-2."""
    from trivium.models.config import ModelConfig

    size = {name: getattr(job, name) for name in ("vocab_size", "width", "layers", "heads")}
    if family == "llama":
        return ModelConfig(**size, max_positions=job.length)
    return ModelConfig(
        **size,
        max_positions=job.length,
        norm="layernorm",
        mlp="plain",
        activation="gelu_tanh",
        positions="learned",
        bias="all",
    )


def our_step(job: Job) -> tuple[nn.Module, Step]:
    """Trivium: a step of the real loop."""
    from trivium.data.batch import Batch
    from trivium.models.build import build_model, initialise
    from trivium.progress import SILENT
    from trivium.runtime import Runtime, prepare_process
    from trivium.training.loop import Trainer
    from trivium.training.reporting import Reporter
    from trivium.training.settings import TrainingSettings
    from trivium.training.signals import Caught
    from trivium.training.token_objective import TokenObjective

    runtime = Runtime(threads=job.threads, precision="bf16" if job.uses_bf16 else "fp32")
    prepare_process(runtime)
    config = our_config(job, "gpt2" if "gpt2" in job.contender else "llama")
    model = build_model(config)
    initialise(model, config, seed=0)
    if job.uses_lora:
        from trivium.peft.apply import add_adapter
        from trivium.peft.settings import LoraSettings

        add_adapter(model, LoraSettings(rank=LORA_RANK, alpha=2 * LORA_RANK))
    segments = positions = None
    if job.contender.endswith("packed"):
        index = torch.arange(job.length).expand(job.rows, job.length)
        document = -(-job.length // DOCUMENTS_PER_PACKED_ROW)
        segments, positions = (index // document + 1).int(), index % document
    batches = [Batch(ids[:, :-1], ids[:, 1:], positions, segments) for ids in token_rows(job)]

    class Source:
        rows_per_step = job.rows

        def micro_batches(self, step: int) -> Iterator[Batch]:
            yield batches[step % BATCHES]

        def worst_case(self) -> Batch:
            return batches[0]

    settings = TrainingSettings(
        steps=10**6,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_steps=0,
        clip_norm=CLIP_NORM,
        precision=runtime.precision,
        compile=job.mode == "compiled",
    )
    reporter = Reporter(runtime.torch_device(), SILENT, (), None, None)
    reporter.open(Path("metrics.jsonl"), 0, 0.0, 0)
    trainer = Trainer(model, TokenObjective(), Source(), settings, runtime, None, None, reporter, Caught())
    trainer.rehearse()

    def step() -> float:
        trainer.take_step()
        assert trainer.state.loss is not None
        return trainer.state.loss

    return model, step


def peer_model(job: Job) -> nn.Module:
    """The model of `transformers`, of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if job.contender.startswith("llama"):
        config = LlamaConfig(
            vocab_size=job.vocab_size,
            hidden_size=job.width,
            num_hidden_layers=job.layers,
            num_attention_heads=job.heads,
            num_key_value_heads=job.heads,
            intermediate_size=our_config(job, "llama").mlp_width,
            max_position_embeddings=job.length,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
        return LlamaForCausalLM(config)
    best: dict[str, Any] = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=job.vocab_size,
            n_embd=job.width,
            n_layer=job.layers,
            n_head=job.heads,
            n_positions=job.length,
            bos_token_id=0,
            eos_token_id=0,
            **({} if job.contender == "gpt2-defaults" else best),
        )
    )


def peer_step(job: Job) -> tuple[nn.Module, Step]:
    """`transformers`: forward with labels, backward, clip, AdamW."""
    if job.threads:
        torch.set_num_threads(job.threads)
    model = peer_model(job).train()
    if job.uses_lora:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
        model = get_peft_model(model, settings)
    defaults = job.contender == "gpt2-defaults"
    options: dict[str, Any] = {} if defaults else {"fused": True, "betas": (0.9, 0.95), "weight_decay": 0.1}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, **options)
    forward = torch.compile(model) if job.mode == "compiled" and not defaults else model
    batches = [ids[:, :-1].contiguous() for ids in token_rows(job)]
    number = 0

    def step() -> float:
        nonlocal number
        ids = batches[number % BATCHES]
        number += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=job.uses_bf16 and not defaults):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return model, step


def serve(job: Job) -> None:
    """Build the contender, then obey stdin."""
    answers = stdout_for_answers()
    model, step = our_step(job) if job.contender.startswith("trivium") else peer_step(job)
    tell(
        answers, parameters=sum(parameter.numel() for parameter in model.parameters()), threads=torch.get_num_threads()
    )
    for command in sys.stdin:
        if command.strip() == "quit":
            tell(answers, peak_bytes=peak_bytes(torch.device("cpu")))
            return
        began = time.perf_counter()
        loss = float("nan")
        for _ in range(int(command.removeprefix("run"))):
            loss = step()
        tell(answers, seconds=time.perf_counter() - began, loss=loss)


def arguments(job: Job, python: str = sys.executable) -> list[str]:
    """The command that starts a worker."""
    return [python, "-m", "workers.training_worker", json.dumps(asdict(job))]


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])))
