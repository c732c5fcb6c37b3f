"""How verbs open a model: its plan is said first, and what cannot fit or serve is refused before weights are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.output import Output
from trivium.errors import UserError
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle
    from trivium.generation.generate import Generation
    from trivium.models.config import ModelConfig
    from trivium.planner.history import PlannedRun
    from trivium.planner.uses import Use
    from trivium.quantization.schemes import Scheme
    from trivium.runtime import Precision

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model directory, a run directory, an adapter, a .gguf file, a hub id, or a built-in name "
        "(smollm2-135m-instruct, minilm-l6).",
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT", help="Pack the weights while they are loaded: int8, int8_dynamic, int4, int4_asymmetric, nf4."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="The type weights are held in and computed with: fp32, bf16 or fp16.")]
IgnorePlanFlag = Annotated[
    bool, typer.Option("--ignore-plan", help="Go on even where the memory planned is more than there is.")
]

VERBS_IN_WORDS = {"perplexity": "metric perplexity"}
# What a user writes to follow a suggestion: with every verb, and with some.
CURES = {"precision": "--dtype {}", "base": "--quantize {}"}
CURES_OF_VERBS = {
    "generate": {"kv_cache": "--kv-cache {}"},
    "bench": {"kv_cache": "--kv-cache {}", "rows_per_micro_batch": "--batch {}"},
}


@dataclass(frozen=True)
class Opening:
    """How a model is to be opened: what the options above say."""

    device: str = "auto"
    dtype: str = "fp32"
    quantize: str | None = None
    ignore_plan: bool = False
    threads: int = 0
    """Compute threads (0: as many as torch chooses)."""


@dataclass
class Opened:
    """A model, and the memory that was planned for what is to be done with it."""

    bundle: Bundle
    planned: PlannedRun
    """Its peak is filled in by `measured`."""
    load_seconds: float
    progress: Progress = field(default=SILENT, repr=False)

    def written(self, generation: Generation) -> dict[str, Any]:
        """The result of a verb that writes text, `measured` included; an empty one is said, as it looks like none."""
        if not generation.text:
            self.progress.note("(the text is empty)")
        return {
            "text": generation.text,
            "tokens": generation.tokens,
            "finish_reason": generation.finish_reason,
            "tokens_per_second": generation.tokens_per_second,
            **self.measured(),
        }

    def measured(self) -> dict[str, int]:
        """{"planned_peak_bytes", "peak_bytes"} of the result; the pair is added to the history of runs."""
        from dataclasses import replace

        from trivium.planner.history import record_run
        from trivium.training.memory import peak_bytes

        peak = peak_bytes(self.bundle.model.device)
        record_run(replace(self.planned, peak_bytes=peak), self.progress)
        return {"planned_peak_bytes": self.planned.planned_bytes, "peak_bytes": peak}


def open_planned(model: str, output: Output, verb: str, use: Callable[[ModelConfig], Use], how: Opening) -> Opened:
    """State what `use` of the model will need, then open it.

    A model that cannot serve `verb`, or whose plan does not fit (unless told otherwise), is refused by its config.
    """
    from trivium.planner.history import PlannedRun
    from trivium.planner.statement import state_plan
    from trivium.planner.uses import use_memory

    place, path = _prepared(model, how.device, how.threads)
    config, scheme = _described(path, how.quantize)
    precision = _precision(how.dtype, scheme)
    _refuse(config, verb)
    work = use(config)
    plan = use_memory(config, work, precision, scheme, device=place)
    state_plan(
        plan,
        f"trivium {VERBS_IN_WORDS.get(verb, verb)}",
        device=place,
        ignore=how.ignore_plan,
        suggest=lambda: _cures(config, work, precision, scheme, place, verb),
        progress=output.progress,
    )
    planned = PlannedRun(
        stage=verb,
        model=model,
        kind=config.kind,
        parameters=_num_parameters(config),
        precision=f"{scheme.format}/{precision}" if scheme and scheme.packs else precision,
        device=place,
        rows=work.rows * work.num_beams,
        length=work.length + work.new_tokens,
        planned_bytes=plan.peak_bytes,
        peak_bytes=0,
    )
    started = time.perf_counter()
    bundle = _load(path, place, output, how.quantize, precision)
    return Opened(bundle, planned, time.perf_counter() - started, output.progress)


def open_bundle(model: str, device: str, output: Output) -> Bundle:
    """The model on its device, without a plan; what of it could not be followed is said as notes."""
    place, path = _prepared(model, device)
    return _load(path, place, output)


def _prepared(model: str, device: str, threads: int = 0) -> tuple[str, Path]:
    """(the device, ready to compute; where the model is)."""
    from trivium.checkpoints.resolve import resolve_model
    from trivium.runtime import choose_runtime, prepare_process

    runtime = choose_runtime(device, threads=threads)
    prepare_process(runtime)
    return runtime.device, resolve_model(model)


def _described(path: Path, quantize: str | None) -> tuple[ModelConfig, Scheme | None]:
    """The shape of a model and how its weights will be packed, without reading them."""
    from trivium.quantization.schemes import scheme_for

    scheme = None if quantize is None else scheme_for(quantize)
    if path.is_dir():
        from trivium.checkpoints.adapter_reading import described_adapter, is_adapter
        from trivium.checkpoints.config_files import read_config, read_scheme

        if is_adapter(path):
            config, base = described_adapter(path)
            return config, scheme or (read_scheme(base) if base.is_dir() else None)
        return read_config(path)[1], scheme or read_scheme(path)
    from trivium.checkpoints.gguf_reading import plan_reading

    return plan_reading(path).config, scheme


def _precision(dtype: str, scheme: Scheme | None) -> Precision:
    """The type that `checkpoints.bundle.load` makes of these."""
    from trivium.checkpoints.bundle import PRECISIONS

    precision = PRECISIONS.get(dtype if scheme is None or scheme.packs else scheme.format)
    if precision is None:
        raise UserError(f"--dtype {dtype}: use fp32, bf16 or fp16")
    return precision


def _refuse(config: ModelConfig, verb: str) -> None:
    from trivium.generation.purposes import USES, refuse_use

    if verb in USES or verb == "perplexity":
        refuse_use(config, verb)


def _cures(
    config: ModelConfig, use: Use, precision: Precision, scheme: Scheme | None, device: str, verb: str
) -> list[str]:
    """What the verb can be told to do with less."""
    from trivium.config import build_settings
    from trivium.planner.settings import PlanSettings
    from trivium.planner.statement import applicable, available_bytes
    from trivium.planner.suggestions import suggestions

    stated = {
        "stage": "generate" if use.new_tokens else "evaluate",
        "precision": precision,
        "base": scheme.format if scheme and scheme.packs else None,
        "rows_per_micro_batch": use.rows,
        "sequence_length": use.length + use.new_tokens,
        "new_tokens": use.new_tokens,
        "num_beams": use.num_beams,
        "kv_cache": "int8" if use.kv_int8 else "same",
        "device": "cuda" if device.startswith("cuda") else "cpu",
    }
    found = suggestions(config, build_settings(PlanSettings, stated, verb), available_bytes(device))
    return applicable(found, {**CURES, **CURES_OF_VERBS.get(verb, {})})


def _num_parameters(config: ModelConfig) -> int:
    from trivium.models.counts import num_parameters

    return num_parameters(config)


def _load(
    path: Path, device: str, output: Output, quantize: str | None = None, precision: Precision = "fp32"
) -> Bundle:
    from trivium.checkpoints.bundle import load

    bundle = load(path, dtype=precision, device=device, quantize=quantize)
    for note in bundle.notes:
        output.progress.note(note)
    return bundle
