"""How verbs open a model: its plan is said first, and what cannot fit or serve is refused before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.output import Output
from trivium.progress import SILENT, Progress

if TYPE_CHECKING:
    from trivium.checkpoints.bundle import Bundle
    from trivium.generation.generate import Generation
    from trivium.models.config import ModelConfig
    from trivium.planner.history import PlannedRun
    from trivium.planner.uses import Use
    from trivium.quantization.schemes import Scheme

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model directory, a run directory, a .gguf file, a hub id, or a built-in name (smollm2-135m-instruct, "
        "minilm-l6).",
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT", help="Pack the weights while they are loaded: int8, int8_dynamic, int4, int4_asymmetric, nf4."
    ),
]
IgnorePlanFlag = Annotated[
    bool, typer.Option("--ignore-plan", help="Go on even where the memory planned is more than there is.")
]

VERBS_IN_WORDS = {"perplexity": "metric perplexity"}


@dataclass
class Opened:
    """A model, and the memory that was planned for what is to be done with it."""

    bundle: Bundle
    planned: PlannedRun
    """Its peak is filled in by `measured`."""
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


def open_planned(
    model: str,
    output: Output,
    verb: str,
    use: Callable[[ModelConfig], Use],
    device: str = "auto",
    quantize: str | None = None,
    ignore_plan: bool = False,
) -> Opened:
    """State what `use` of the model will need, then open it.

    A model that cannot serve `verb`, or whose plan does not fit (unless `ignore_plan`), is refused by its config.
    """
    from trivium.planner.history import PlannedRun
    from trivium.planner.statement import state_plan
    from trivium.planner.uses import use_memory

    place, path = _prepared(model, device)
    config, scheme = _described(path, quantize)
    _refuse(config, verb)
    work = use(config)
    plan = use_memory(config, work, "fp32", scheme, device=place)
    state_plan(
        plan,
        f"trivium {VERBS_IN_WORDS.get(verb, verb)}",
        device=place,
        ignore=ignore_plan,
        suggest=lambda: _cures(config, work, place),
        progress=output.progress,
    )
    planned = PlannedRun(
        stage=verb,
        model=model,
        kind=config.kind,
        parameters=_num_parameters(config),
        precision=scheme.format if scheme else "fp32",
        device=place,
        rows=work.rows * work.num_beams,
        length=work.length + work.new_tokens,
        planned_bytes=plan.peak_bytes,
        peak_bytes=0,
    )
    return Opened(_load(path, place, output, quantize), planned, output.progress)


def open_bundle(
    model: str, device: str, output: Output, verb: str | None = None, quantize: str | None = None
) -> Bundle:
    """The model on its device, without a plan; what of it could not be followed is said as notes."""
    place, path = _prepared(model, device)
    if verb is not None and path.is_dir():
        _refuse(_described(path, None)[0], verb)
    return _load(path, place, output, quantize)


def _prepared(model: str, device: str) -> tuple[str, Path]:
    """(the device, ready to compute; where the model is)."""
    from trivium.checkpoints.resolve import resolve_model
    from trivium.runtime import choose_runtime, prepare_process

    runtime = choose_runtime(device)
    prepare_process(runtime)
    return runtime.device, resolve_model(model)


def _described(path: Path, quantize: str | None) -> tuple[ModelConfig, Scheme | None]:
    """The shape of a model and how its weights will be packed, without reading them."""
    from trivium.quantization.schemes import scheme_for

    scheme = None if quantize is None else scheme_for(quantize)
    if path.is_dir():
        from trivium.checkpoints.config_files import read_config, read_scheme

        return read_config(path)[1], scheme or read_scheme(path)
    from trivium.checkpoints.gguf_reading import plan_reading

    return plan_reading(path).config, scheme


def _refuse(config: ModelConfig, verb: str) -> None:
    from trivium.generation.purposes import USES, refuse_use

    if verb in USES or verb == "perplexity":
        refuse_use(config, verb)


def _cures(config: ModelConfig, use: Use, device: str) -> list[str]:
    """What the verbs of this file can be told to do with less."""
    from trivium.planner.settings import PlanSettings
    from trivium.planner.statement import applicable, available_bytes
    from trivium.planner.suggestions import suggestions

    settings = PlanSettings(
        stage="generate" if use.new_tokens else "evaluate",
        rows_per_micro_batch=use.rows,
        sequence_length=use.length + use.new_tokens,
        new_tokens=use.new_tokens,
        num_beams=use.num_beams,
        kv_cache="int8" if use.kv_int8 else "same",
        device="cuda" if device.startswith("cuda") else "cpu",
    )
    return applicable(suggestions(config, settings, available_bytes(device)), {"base": "--quantize {}"})


def _num_parameters(config: ModelConfig) -> int:
    from trivium.models.counts import num_parameters

    return num_parameters(config)


def _load(path: Path, device: str, output: Output, quantize: str | None) -> Bundle:
    from trivium.checkpoints.bundle import load

    bundle = load(path, device=device, quantize=quantize)
    for note in bundle.notes:
        output.progress.note(note)
    return bundle
