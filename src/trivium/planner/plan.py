"""`tv.plan`: what a run will need and how long it will take, before it is begun, from the model's config alone.

    import trivium as tv
    plan = tv.plan("smollm2-135m-instruct", peft="lora", precision="bf16", sequence_length=512)
    plan.peak_bytes, plan.fits, plan.suggestions

The figures come from the modules beside this one: memory of a step (`memory.py`, `inference.py`), of stages
(`stages.py`), time (`durations.py`), what would make it fit (`suggestions.py`), the textbook's arithmetic
(`rule_of_thumb.py`, `chinchilla.py`). A number of parameters in the place of a model gives that arithmetic.

Invariant its test checks: the parts add up to the peak, and every key of the contract is there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from trivium.config import Settings, build_settings
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.chinchilla import FLOPS_PER_PARAMETER_AND_TOKEN, TOKENS_PER_PARAMETER, compute_optimal
from trivium.planner.durations import Duration, duration
from trivium.planner.parts import Parts
from trivium.planner.reading import Described, described
from trivium.planner.rule_of_thumb import BYTES_MORE_TO_TRAIN, BYTES_TO_STORE, by_precision, rule_of_thumb
from trivium.planner.settings import PlanSettings
from trivium.planner.speed import Speed, saved_speed, this_speed
from trivium.planner.stages import (
    CUDA_CONTEXT_BYTES,
    generated_length,
    row_length,
    stage_phases,
    trained_parameters,
)
from trivium.planner.statement import available_bytes
from trivium.planner.suggestions import Suggestion, fullest, largest_rows, suggestions
from trivium.planner.typical import typical_shape
from trivium.progress import short_bytes

SMALLEST, LARGEST = 1, 10**15
# Settings that the textbook's arithmetic makes use of.
WITHOUT_SHAPE = frozenset({"memory", "device", "tokens", "machine", "utilisation", "budget_flops", "budget_hours"})


class Recipe(Protocol):
    """A recipe that trains a model: `PretrainRecipe`, and those of other stages with the same sections."""

    @property
    def model(self) -> ModelConfig:
        """The shape that is trained."""

    @property
    def data(self) -> Any:
        """`DataSettings`, or a section with the same batch."""

    @property
    def training(self) -> Any:
        """`TrainingSettings`."""


@dataclass(frozen=True)
class Plan:
    """What one run needs, on each of its devices."""

    model: str
    settings: PlanSettings
    num_parameters: int
    num_trainable_parameters: int
    parts: Parts
    """Of the fullest phase."""
    phases: dict[str, Parts]
    available_bytes: int
    """Memory of each device: as given, else what this machine leaves to this process."""
    largest_rows_per_micro_batch: int | None
    """The most that fit; None where the plan knows no shape."""
    duration: Duration
    compute_optimal: dict[str, Any] | None
    suggestions: list[Suggestion]
    assumptions: tuple[str, ...]
    """What was taken to be so because nothing else was said, in words."""

    @property
    def peak_bytes(self) -> int:
        """The most memory a device needs at any time."""
        return self.parts.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.peak_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """Everything, with the keys of the contract, ready for JSON."""
        return {
            "model": self.model,
            "num_parameters": self.num_parameters,
            "num_trainable_parameters": self.num_trainable_parameters,
            **self.parts.to_dict(),
            "fits": self.fits,
            "available_bytes": self.available_bytes,
            "by_precision": by_precision(self.num_parameters),
            "rule_of_thumb": rule_of_thumb(self.num_parameters),
            "phases": {name: parts.to_dict() for name, parts in self.phases.items()},
            "largest_rows_per_micro_batch": self.largest_rows_per_micro_batch,
            "time": asdict(self.duration),
            "compute_optimal": self.compute_optimal,
            "suggestions": [asdict(suggestion) for suggestion in self.suggestions],
            "settings": self.settings.model_dump(mode="json"),
            "assumptions": list(self.assumptions),
        }


def plan(
    model: str | Path | int | float | ModelConfig | Recipe, settings: PlanSettings | None = None, **changes: Any
) -> Plan:
    """What a run with `model` needs.

    `model`: whatever `tv.load` opens (only its config is read), a bare config.json, a config, a recipe object (whose
    batch, precision and steps are then the settings), or a number of parameters: the textbook's arithmetic, or, with
    settings that it knows nothing of, a typical model of that size. `changes`: fields of `PlanSettings`. Raises
    UserError for settings that make no sense.
    """
    if isinstance(model, str | Path):
        return plan_of_described(described(model), _settings(PlanSettings(), settings, changes), str(model))
    if isinstance(model, int | float):
        return plan_of_number(model, _settings(PlanSettings(), settings, changes))
    if isinstance(model, ModelConfig):
        label, config = "config", model
    else:
        label, config = "recipe", model.model
        settings = settings or settings_of_recipe(model)
    return plan_of_config(config, _settings(PlanSettings(), settings, changes), label)


def settings_of_recipe(recipe: Recipe) -> PlanSettings:
    """The plan of a pretraining recipe: its batch, precision and number of tokens."""
    data, training = recipe.data, recipe.training
    return PlanSettings(
        stage="pretrain",
        precision=training.precision,
        rows_per_micro_batch=min(data.rows_per_micro_batch, data.rows_per_step),
        rows_per_step=data.rows_per_step,
        sequence_length=data.sequence_length,
        gradient_checkpointing=training.gradient_checkpointing,
        packed_documents=True,
        tokens=training.steps * data.rows_per_step * data.sequence_length,
    )


def plan_of_described(model: Described, settings: PlanSettings, label: str) -> Plan:
    """The plan of a model that exists: one whose matrices are packed stays so where its weights are only read."""
    if settings.base is None and model.stored_as is not None and (not settings.trains or settings.peft != "none"):
        settings = settings.model_copy(update={"base": model.stored_as})
    return plan_of_config(model.config, settings, label)


def plan_of_config(config: ModelConfig, settings: PlanSettings, label: str) -> Plan:
    """The plan of a model whose shape is known."""
    speed = _speed(settings)
    available = _available(settings)
    phases = stage_phases(config, settings)
    took = duration(config, settings, phases, speed)
    return Plan(
        model=label,
        settings=settings,
        num_parameters=num_parameters(config),
        num_trainable_parameters=trained_parameters(config, settings) if settings.trains else 0,
        parts=fullest(phases),
        phases=phases,
        available_bytes=available,
        largest_rows_per_micro_batch=largest_rows(config, settings, available),
        duration=took,
        compute_optimal=_compute_optimal(settings, speed, took.total_flops if settings.stage == "pretrain" else 0),
        suggestions=suggestions(config, settings, available, speed),
        assumptions=tuple(_assumptions(config, settings, speed)),
    )


def plan_of_number(parameters: float, settings: PlanSettings) -> Plan:
    """The textbook's arithmetic for so many parameters; with settings it knows nothing of, a typical model's plan."""
    if not SMALLEST <= parameters <= LARGEST:
        raise UserError(f"{parameters:g} parameters: give a number from {SMALLEST} to {LARGEST:g}, such as 1e9")
    if settings.model_fields_set - WITHOUT_SHAPE:
        config = typical_shape(parameters)
        label = f"a Llama of {config.layers} layers of width {config.width}, for {parameters:g} parameters"
        return plan_of_config(config, settings, label)
    number = round(parameters)
    extra = {f"{name}_bytes": each * number for name, each in BYTES_MORE_TO_TRAIN.items()}
    parts = Parts(weights_bytes=BYTES_TO_STORE * number, **extra)
    speed = _speed(settings)
    tokens = settings.tokens or TOKENS_PER_PARAMETER * number
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * number
    rate = None if speed is None else speed.flops(settings.precision) * settings.utilisation / flops
    took = Duration(flops, flops * tokens, tokens, rate, rate and tokens / rate / 3600, steps=None, decode_limit=None)
    return Plan(
        model=f"{number:,} parameters",
        settings=settings,
        num_parameters=number,
        num_trainable_parameters=number,
        parts=parts,
        phases={"rule of thumb": parts},
        available_bytes=_available(settings),
        largest_rows_per_micro_batch=None,
        duration=took,
        compute_optimal=_compute_optimal(settings, speed, took.total_flops),
        suggestions=[],
        assumptions=(
            "24 bytes a parameter in training: 4 weights, 8 AdamW, 4 gradients, 8 activations and temporaries",
            *(f"speed of {line}" for line in ([speed.source] if speed else [])),
        ),
    )


def _settings(defaults: PlanSettings, given: PlanSettings | None, changes: dict[str, Any]) -> PlanSettings:
    stated: Settings = given or defaults
    return build_settings(PlanSettings, {**stated.model_dump(exclude_unset=True), **changes}, "plan")


def _available(settings: PlanSettings) -> int:
    """Memory of each device: what was given, else what this machine leaves to this process."""
    if not settings.memory and settings.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("memory: there is no card here to ask; say what it has, such as memory=80GB")
    return settings.memory or available_bytes(settings.device)


def _speed(settings: PlanSettings) -> Speed | None:
    """Of the machine that is named, else of this one."""
    if settings.machine is not None:
        return saved_speed(Path(settings.machine), settings.device)
    return this_speed(settings.device)


def _compute_optimal(settings: PlanSettings, speed: Speed | None, own_flops: int) -> dict[str, Any] | None:
    """The best model for the budget that is given, else for the FLOPs of the run itself."""
    flops: float = settings.budget_flops or own_flops
    if settings.budget_hours and speed is not None:
        rate = speed.flops(settings.precision) * settings.utilisation * settings.devices
        flops = settings.budget_hours * 3600 * rate
    return {"flops": flops, **compute_optimal(flops)} if flops else None


def _assumptions(config: ModelConfig, settings: PlanSettings, speed: Speed | None) -> list[str]:
    """What the plan takes to be so."""
    stated = settings.model_fields_set
    lines = [f"stage={settings.stage}"] if "stage" not in stated else []
    if "rows_per_micro_batch" not in stated:
        lines.append(f"rows_per_micro_batch={settings.rows_per_micro_batch}")
    if not settings.sequence_length:
        lines.append(f"sequence_length={row_length(config, settings)}")
    if settings.stage in ("generate", "serve", "ppo", "grpo") and not settings.new_tokens:
        lines.append(f"new_tokens={generated_length(config, settings)}")
    if "precision" not in stated:
        lines.append(f"precision={settings.precision}")
    if speed is not None:
        lines.append(f"speed of {speed.source}")
    if settings.device == "cuda":
        lines.append(f"{short_bytes(CUDA_CONTEXT_BYTES)} for the context of the card, which was not measured here")
    if settings.trains and (settings.stage not in ("pretrain", "finetune") or settings.peft != "none"):
        lines.append("a formula that no run of this stage has tested yet")
    return lines
