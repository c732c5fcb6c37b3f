"""What a plan is made for: the stage, its batch, its devices (read by `--help`, so torch is not imported here)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import Settings
from trivium.runtime import Precision

Stage = Literal["pretrain", "finetune", "reward", "dpo", "ppo", "grpo", "evaluate", "generate", "serve"]
TRAINING: tuple[Stage, ...] = ("pretrain", "finetune", "reward", "dpo", "ppo", "grpo")
ROLLOUTS: tuple[Stage, ...] = ("ppo", "grpo")
# Training in which no second model is read.
WITHOUT_REFERENCE: tuple[Stage, ...] = ("pretrain", "finetune", "reward")
Peft = Literal[
    "none", "bias", "norms", "last_layers", "lora", "rslora", "dora", "houlsby", "pfeiffer", "parallel", "ia3",
    "prompt", "prefix", "p_tuning",
]  # fmt: skip
BaseFormat = Literal["fp32", "fp16", "bf16", "int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"]
DENSE: tuple[BaseFormat, ...] = ("fp32", "fp16", "bf16")
Optimizer = Literal["adamw", "sgd_momentum", "sgd"]
Target = Literal["query", "key", "value", "output", "gate", "up", "down"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("kmgt", 1)}
LONGEST_NUMBER = 100
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)


def _size(value: Any) -> Any:
    """`24GB` and `80GiB` as numbers of bytes."""
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value.strip())
    if found is None or found[2].lower() not in UNITS or len(value) > LONGEST_NUMBER:
        raise ValueError("must be a number of bytes, or a size such as 24GB or 80GiB")
    return int(float(found[1]) * UNITS[found[2].lower()])


def _count(value: Any) -> Any:
    """`3e8` as a whole number, and `300M` too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str) or len(value) > LONGEST_NUMBER:
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgbt]?)", value.strip(), re.IGNORECASE)
    return int(float(found[1]) * {**UNITS, "b": 10**9}[found[2].lower()]) if found else value


Size = Annotated[int, BeforeValidator(_size)]
Count = Annotated[int, BeforeValidator(_count)]


class PlanSettings(Settings):
    """One run whose memory and time are wanted before it is begun."""

    stage: Stage = "finetune"
    """What the model is to do. pretrain and finetune without `peft` need the same memory."""
    precision: Precision = "fp32"
    """Precision of matrix products. Trained weights stay fp32; a model that is only read is stored in this precision,
    unless `base` says otherwise."""
    rows_per_micro_batch: int = Field(default=1, ge=1, le=1 << 24)
    """Rows computed at once on each device: of a micro-batch in training, of a batch in evaluation and generation, and
    the most conversations at a time in serving. In reward and dpo a row is a pair, which is two texts."""
    sequence_length: int = Field(default=0, ge=0, le=1 << 24)
    """Positions in a row: prompt and answer together; 0: as many as the model is made for, 2048 at most."""
    source_length: int = Field(default=0, ge=0, le=1 << 24)
    """Positions of an encoder-decoder's source; 0: as many as of a target in training and evaluation, in generation
    what `new_tokens` leave of the row."""
    new_tokens: int = Field(default=0, ge=0, le=1 << 24)
    """How many of a row's positions are generated (generate, serve, ppo, grpo); 0: half of them."""
    rows_per_step: int = Field(default=0, ge=0, le=1 << 40)
    """Rows of one optimizer step over all devices, reached by accumulating micro-batches; 0: one micro-batch each."""
    packed_documents: bool = False
    """Training rows hold several documents, which a mask keeps apart; so do those of a recipe."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""
    optimizer: Optimizer = "adamw"
    """adamw keeps 8 bytes for each trained parameter, sgd_momentum 4, sgd none (Trivium trains with adamw)."""
    peft: Peft = "none"
    """How much of the model is trained: all of it (none), its biases, its norms, its last blocks, or parts that are
    added to frozen weights. pretrain trains everything."""
    base: BaseFormat | None = None
    """How weights are stored that are only read (those under `peft`, of a reference, in evaluation and generation);
    null: as `precision` says, and in fp32 under `peft`."""
    rank: int = Field(default=8, ge=1, le=1 << 20)
    """Rank of lora, rslora and dora."""
    targets: tuple[Target, ...] = ("query", "value")
    """Which linear layers lora, rslora and dora are added to."""
    bottleneck: int = Field(default=64, ge=1, le=1 << 20)
    """Inner width of houlsby, pfeiffer and parallel adapters."""
    virtual_tokens: int = Field(default=20, ge=1, le=1 << 20)
    """Learned positions of prompt, prefix and p_tuning."""
    last_layers: int = Field(default=2, ge=1, le=1 << 20)
    """How many of the last blocks `peft=last_layers` trains; of an encoder-decoder, of its decoder."""
    cached_reference: bool = False
    """dpo: the reference's log-probabilities are computed once beforehand, so that it need not be in memory. With
    `peft` the reference is the policy without what was added to it, and needs no memory either way."""
    value_model: Literal["head", "model"] = "head"
    """ppo: values come from one more number on the policy's last hidden state, or from a second trained model."""
    reward_model: bool = True
    """ppo, grpo: a reward model of the policy's shape is in memory; false: rewards come from a function."""
    updates_per_rollout: int = Field(default=1, ge=1, le=10_000)
    """ppo, grpo: how often each rollout is learned from."""
    kv_cache: Literal["same", "int8"] = "same"
    """How keys and values are kept in generation and serving: in `precision`, or as int8 with a scale each."""
    num_beams: int = Field(default=1, ge=1, le=1000)
    """generate: beams searched for each row."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What computes: a CPU with its memory, or a CUDA card with its own. Only the CPU's figures were measured."""
    memory: Size = Field(default=0, ge=0, le=1 << 60)
    """Memory of each device, such as 24GB or 80GiB; 0: what this machine allows."""
    data_ways: int = Field(default=1, ge=1, le=1 << 20)
    """Devices that hold the whole model, each with its own rows."""
    fsdp_ways: int = Field(default=1, ge=1, le=1 << 20)
    """Devices over which weights, gradients and optimizer states are cut up (FSDP, ZeRO stage 3), each with its own
    rows."""
    tensor_ways: int = Field(default=1, ge=1, le=1 << 20)
    """Devices over which each layer's heads, MLP and vocabulary are cut up, all with the same rows."""
    tokens: Count = Field(default=0, ge=0, le=10**18)
    """Tokens to train on, to evaluate or to generate; 0: 20 for each parameter in pretrain, a million otherwise."""
    budget_flops: Count = Field(default=0, ge=0, le=10**30)
    """Training FLOPs to find the best model for; 0: those of this run, in pretrain."""
    budget_hours: float = Field(default=0, ge=0, le=1e9)
    """The same as hours of these devices."""
    machine: str | None = None
    """A file written by `trivium doctor --json`, with the speed of the machine that is to do it; null: this one."""
    utilisation: float = Field(default=0.55, gt=0, le=1)
    """Share of the measured matrix product rate that training reaches; 0.55 is what was measured for small models on a
    CPU (docs/measurements.md)."""

    @model_validator(mode="after")
    def _consistent(self) -> PlanSettings:
        if self.peft != "none" and self.stage not in TRAINING[1:]:
            raise ValueError(f"peft={self.peft} is for {', '.join(TRAINING[1:])}, not {self.stage}: leave it out")
        if self.base not in (None, "fp32") and self.stage in WITHOUT_REFERENCE and self.peft == "none":
            raise ValueError(f"base={self.base} cannot be trained itself: add peft=lora, or leave it out")
        if self.new_tokens and self.sequence_length and self.new_tokens >= self.sequence_length:
            raise ValueError(
                f"new_tokens={self.new_tokens} leave no room for a prompt in sequence_length={self.sequence_length}"
            )
        if not self.targets:
            raise ValueError("targets is empty: name at least one layer, such as [query, value]")
        return self

    @property
    def is_packed(self) -> bool:
        """Whether the weights that are only read are codes."""
        return self.base not in (None, *DENSE)

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.data_ways * self.fsdp_ways * self.tensor_ways

    @property
    def trains(self) -> bool:
        """Whether weights are learned."""
        return self.stage in TRAINING
