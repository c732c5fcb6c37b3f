"""One run of `benchmarks/planning.py`: a process that plans a piece of work, does it, and says how large it became.

It runs as it runs for a user: `prepare_process`, then the real loop, the real scoring or the real generation, on random
ids. The plan is made from the config before anything else; the peak is that of the whole process since its start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.models.config import ModelConfig
    from trivium.planner.memory import MemoryPlan
    from trivium.planner.parts import Parts

# Share of positions that a masked language model learns, in the mean.
MASKED = 0.15
LORA_TARGETS = ("query", "value")
GPT2 = {"norm": "layernorm", "mlp": "plain", "positions": "learned", "bias": "all", "activation": "gelu_tanh"}
KINDS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "decoder-gpt2": GPT2,
    "encoder": {
        "kind": "encoder",
        **GPT2,
        "activation": "gelu",
        "norm_placement": "post",
        "embedding_norm": True,
        "segment_types": 2,
        "head_hidden": "activation_norm",
        "head_bias": True,
    },
    "encoder-decoder": {
        "kind": "encoder-decoder",
        "positions": "relative",
        "attention_scale": 1.0,
        "logit_scale": 0.0,
        "norm_eps": 1e-6,
    },
}


@dataclass(frozen=True)
class Case:
    """What a run does."""

    family: str
    """One of `KINDS`."""
    vocab_size: int
    width: int
    layers: int
    heads: int
    precision: str
    stage: str
    """pretrain, checkpointing (pretrain, activations computed again), finetune, evaluate, generate or beams."""
    rows: int
    length: int
    """Positions in a row; of an encoder-decoder those of the target."""
    source_length: int = 0
    steps: int = 2
    new_tokens: int = 32
    threads: int = 0
    holds: bool = True
    """Whether training is told its plan, and keeps to it."""
    method: str = "none"
    """finetune: a method of `peft`, with the settings that the planner takes to be usual."""
    base: str = "fp32"
    """finetune: how weights that are only read are stored."""

    @property
    def name(self) -> str:
        """A name for tables and messages."""
        stage = self.stage if self.stage != "finetune" else f"finetune {self.method} {self.base}"
        return f"{self.family} {self.width}x{self.layers} {self.precision} {stage} {self.rows}x{self.length}"

    def config(self) -> ModelConfig:
        """The model's config."""
        from trivium.models.config import ModelConfig

        size = {name: getattr(self, name) for name in ("vocab_size", "width", "layers", "heads")}
        return ModelConfig(**size, **KINDS[self.family], max_positions=max(self.length, self.source_length, 64) * 2)


def plan_of(case: Case) -> MemoryPlan | Parts:
    """The plan, from the config alone."""
    if case.stage == "finetune":
        from trivium.planner.stages import stage_phases
        from trivium.planner.suggestions import fullest

        return fullest(stage_phases(case.config(), plan_settings(case)))
    from trivium.planner.inference import evaluation_memory, generation_memory
    from trivium.planner.memory import estimate

    config, precision = case.config(), case.precision
    masked = round(MASKED * case.rows * case.length) if config.kind == "encoder" else None
    if case.stage in ("pretrain", "checkpointing"):
        return estimate(
            config,
            rows_per_micro_batch=case.rows,
            sequence_length=case.length,
            source_length=case.source_length,
            targets=masked,
            precision=precision,  # type: ignore[arg-type]
            gradient_checkpointing=case.stage == "checkpointing",
        )
    if case.stage == "evaluate":
        return evaluation_memory(
            config,
            rows=case.rows,
            length=case.length,
            precision=precision,  # type: ignore[arg-type]
            source_length=case.source_length,
            targets=masked,
        )
    return generation_memory(
        config,
        rows=case.rows,
        prompt_length=case.source_length or case.length,
        new_tokens=case.new_tokens,
        precision=precision,  # type: ignore[arg-type]
        num_beams=4 if case.stage == "beams" else 1,
    )


def plan_settings(case: Case) -> Any:
    """The planner's words for a run that fine-tunes."""
    from trivium.config import build_settings
    from trivium.planner.settings import PlanSettings

    stated = {
        "stage": "finetune",
        "precision": case.precision,
        "peft": case.method,
        **({"base": case.base} if case.base != "fp32" else {}),
        "targets": LORA_TARGETS,
        "rows_per_micro_batch": case.rows,
        "sequence_length": case.length,
        "source_length": case.source_length,
    }
    return build_settings(PlanSettings, stated, "case")


def peft_settings(case: Case) -> Any:
    """The same as the settings of the method."""
    from trivium.config import Settings, build_settings
    from trivium.peft.settings import PeftSettings

    class Holder(Settings):
        """One section."""

        peft: PeftSettings
        """The method."""

    usual = plan_settings(case)
    own: dict[str, Any] = {"method": case.method}
    if case.method in ("lora", "rslora", "dora"):
        own |= {"rank": usual.rank, "targets": list(LORA_TARGETS)}
    elif case.method in ("houlsby", "pfeiffer", "parallel"):
        own["bottleneck"] = usual.bottleneck
    elif case.method in ("prompt", "prefix", "p_tuning"):
        own["virtual_tokens"] = usual.virtual_tokens
    elif case.method == "last_layers":
        own["layers"] = usual.last_layers
    return build_settings(Holder, {"peft": own}, "case").peft


def execute(case: Case, planned_bytes: int) -> int:
    """Do it; how often freed memory was given back to keep to the plan."""
    import torch

    from trivium.models.build import build_model, initialise
    from trivium.runtime import Runtime, prepare_process

    runtime = Runtime(threads=case.threads, precision=case.precision)  # type: ignore[arg-type]
    prepare_process(runtime)
    torch.manual_seed(0)
    config = case.config()
    if case.stage in ("pretrain", "checkpointing", "finetune"):
        model = build_model(config)
        initialise(model, config, seed=0)
        if case.stage == "finetune":
            from trivium.peft.apply import add_adapter
            from trivium.quantization.quantize import quantize_model

            if case.base != "fp32":
                quantize_model(model, case.base)
            add_adapter(model, peft_settings(case))
        return _train(case, model, runtime, planned_bytes)
    dtype = torch.float32 if case.precision == "fp32" else torch.bfloat16
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as loading does: weights are never held twice
    try:
        model = build_model(config)
    finally:
        torch.set_default_dtype(usual)
    if case.stage == "evaluate":
        _evaluate(case, model)
    else:
        _generate(case, model)
    return 0


def _batch(case: Case) -> Any:
    """Random ids and targets, some positions masked for an encoder."""
    import torch

    from trivium.data.batch import IGNORED, Batch

    ids = torch.randint(0, case.vocab_size, (case.rows, case.length))
    targets = torch.randint(0, case.vocab_size, (case.rows, case.length))
    if case.family == "encoder":
        targets[torch.rand(targets.shape) > MASKED] = IGNORED
    source = torch.randint(0, case.vocab_size, (case.rows, case.source_length)) if case.source_length else None
    return Batch(ids, targets, source_ids=source)


def _train(case: Case, model: Any, runtime: Any, planned_bytes: int) -> int:
    """A few steps of the loop, of two micro-batches each; how often memory was given back."""
    from trivium.training import memory
    from trivium.training.loop import train
    from trivium.training.settings import TrainingSettings
    from trivium.training.token_objective import TokenObjective

    class Source:
        rows_per_step = 2 * case.rows

        def micro_batches(self, step: int) -> Iterator[Any]:
            return (_batch(case) for _ in range(2))

        def worst_case(self) -> Any:
            return _batch(case)

    settings = TrainingSettings(
        steps=case.steps,
        precision=runtime.precision,
        gradient_checkpointing=case.stage == "checkpointing",
        log_every_steps=1000,
    )
    planned, returns, give_back = planned_bytes if case.holds else None, 0, memory.give_back_freed_memory

    def counted() -> bool:
        nonlocal returns
        returns += 1
        return give_back()

    memory.give_back_freed_memory = counted
    train(model, TokenObjective(), Source(), settings, runtime, planned_peak_bytes=planned)
    return returns


def _evaluate(case: Case, model: Any) -> None:
    """Log-likelihoods of texts, or of a masked model's hidden tokens."""
    import torch

    from trivium.generation.scoring import documents_logprobs, score_pairs
    from trivium.runtime import Runtime
    from trivium.training.evaluate import evaluate_loss
    from trivium.training.token_objective import TokenObjective

    if model.config.kind == "decoder":
        documents = torch.randint(1, case.vocab_size, (2 * case.rows, case.length)).tolist()
        tokens = case.rows * case.length
        documents_logprobs(model, documents, prefix_id=0, max_length=case.length, tokens_per_batch=tokens)
    elif model.config.kind == "encoder-decoder":
        sources = torch.randint(1, 250, (2 * case.rows, case.source_length)).tolist()
        targets = ["q" * (case.length - 1)] * len(sources)  # each letter is a token, and the end is one
        tokens = case.rows * (case.source_length + case.length + 1)
        score_pairs(model, _tokenizer(model), sources, targets, tokens_per_batch=tokens)
    else:
        evaluate_loss(model, TokenObjective(), [_batch(case) for _ in range(2)], Runtime())


def _generate(case: Case, model: Any) -> None:
    """Continue prompts of random ids, or write targets of random sources."""
    import torch

    from trivium.generation.generate import generate
    from trivium.generation.settings import GenerationSettings

    length = case.source_length or case.length
    prompts = torch.randint(1, 250, (case.rows, length)).tolist()
    settings = GenerationSettings(
        max_new_tokens=case.new_tokens,
        min_new_tokens=case.new_tokens,
        num_beams=4 if case.stage == "beams" else 1,
        temperature=0.0,
        rows_per_batch=4 * case.rows,
    )
    generate(model, _tokenizer(model), prompts, settings)


def _tokenizer(model: Any) -> Any:
    """A tokenizer that knows little more than bytes."""
    from trivium.tokenizer.bpe import Tokenizer

    return Tokenizer.train(texts=["a few words, learned from"], vocab_size=360, kind=model.config.kind)


def main(case: Case) -> dict[str, Any]:
    """Plan, then do; the outcome."""
    plan = plan_of(case)
    given_back = execute(case, plan.peak_bytes)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            measured = int(line.split()[1]) * 1024
            return {
                "case": asdict(case),
                "plan": plan.to_dict(),
                "measured_bytes": measured,
                "given_back": given_back,
            }
    raise RuntimeError("this system does not tell a process's peak memory")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Case(**json.loads(sys.argv[1])))) + "\n")
