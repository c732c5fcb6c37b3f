"""What would make a run fit: each change by itself with its new peak and time, best first, then changes together.

Changes are tried in the order of how little they alter: first those after which the same is learned or written
(fewer rows at once, recomputing, a cached reference), then precision, then those that train or store less, then shorter
rows, then more devices. Ranked: what fits before what does not; of what fits, the quickest without further devices, and
of equally quick ones the one that alters less; of what does not fit, the smallest. Where nothing fits by itself, the
changes are made one upon the other until it does, and only then more devices are taken.

Invariants its test checks: every suggestion lowers the peak, by the plan's own figures; rows found to fit do, and one
more does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trivium.config import build_settings
from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.planner.durations import duration
from trivium.planner.parts import Parts
from trivium.planner.settings import WITHOUT_REFERENCE, PlanSettings
from trivium.planner.speed import Speed
from trivium.planner.stages import row_length, stage_phases
from trivium.progress import short_bytes

MOST_ROWS = 1 << 20
SHORTEST_ROW = 128
MORE_DEVICES = (2, 4, 8, 16, 32, 64)
FOUR_BITS = ("int4", "int4_asymmetric", "nf4")
# Less than this share is no change worth naming.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Suggestion:
    """A change of settings that needs less memory."""

    change: str
    """As it is written after `trivium plan`: `gradient_checkpointing=true`."""
    why: str
    """What it does and what it costs, in words."""
    peak_bytes: int
    fits: bool
    hours: float | None
    """None where the machine's speed is not known."""


Change = tuple[dict[str, Any], str]


def fullest(phases: dict[str, Parts]) -> Parts:
    """The parts of the phase with the highest peak."""
    return max(phases.values(), key=lambda parts: parts.peak_bytes)


def suggestions(
    config: ModelConfig, settings: PlanSettings, available_bytes: int, speed: Speed | None = None
) -> list[Suggestion]:
    """Changes that lower the peak, best first."""
    now = fullest(stage_phases(config, settings)).peak_bytes
    ordered = [change for change in _changes(config, settings, available_bytes) if change[0]]
    alone = [_tried(config, settings, change, available_bytes, speed) for change in ordered]
    found = [each for each in alone if each is not None and each.peak_bytes < (1 - LEAST_GAIN) * now]
    if found and not any(each.fits for each in found):
        found += _together(config, settings, ordered, available_bytes, speed)
    return sorted(found, key=_rank)


def largest_rows(config: ModelConfig, settings: PlanSettings, available_bytes: int) -> int:
    """The most `rows_per_micro_batch` that fit; 0: not even one does."""

    def fits(rows: int) -> bool:
        changed = settings.model_copy(update={"rows_per_micro_batch": rows})
        return fullest(stage_phases(config, changed)).peak_bytes <= available_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _changes(config: ModelConfig, settings: PlanSettings, available: int) -> Iterator[Change]:
    """Everything that could be tried, what alters least first."""
    yield (
        _fewer_rows(config, settings, available),
        "fewer rows at once" + (", as many in a step: the same is learned" if settings.trains else ""),
    )
    if settings.trains and not settings.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, "activations are computed again: about a third more time"
    if settings.stage == "dpo" and not settings.cached_reference and settings.peft == "none":
        yield {"cached_reference": True}, "the reference is asked once beforehand and not kept"
    if settings.stage in ("generate", "serve") and settings.kv_cache == "same":
        yield {"kv_cache": "int8"}, "keys and values in 8 bits"
    if settings.precision == "fp32":
        yield {"precision": "bf16"}, "products in 16 bits"
    if settings.stage == "ppo" and settings.value_model == "model":
        yield {"value_model": "head"}, "values from a head on the policy"
    yield from _fewer_bits(settings)
    length = row_length(config, settings)
    if length // 2 >= SHORTEST_ROW:
        new = settings.new_tokens if settings.new_tokens < length // 2 else 0
        yield {"sequence_length": length // 2, "new_tokens": new}, "rows half as long"
    yield from _more_devices(config, settings, available)


def _fewer_rows(config: ModelConfig, settings: PlanSettings, available: int) -> dict[str, Any]:
    """The most rows that fit, the rest accumulated; a single one where none fit."""
    rows = settings.rows_per_micro_batch
    fewer = max(1, min(rows, largest_rows(config, settings, available)))
    if fewer == rows:
        fewer = rows // 2  # everything fits: what half of it would take
    if not 0 < fewer < rows:
        return {}
    if not settings.trains:
        return {"rows_per_micro_batch": fewer}
    whole = settings.rows_per_step or rows * settings.data_ways * settings.fsdp_ways
    return {"rows_per_micro_batch": fewer, "rows_per_step": whole}


def _fewer_bits(settings: PlanSettings) -> Iterator[Change]:
    """Training less of the model, and storing the rest in fewer bits."""
    adapters = settings.trains and settings.stage != "pretrain" and settings.peft == "none"
    if adapters and settings.stage not in WITHOUT_REFERENCE and settings.base is None:
        yield {"base": "int8"}, "models that are only read, such as the reference, in 8 bits"
    if adapters:
        yield {"peft": "lora", "base": settings.base}, "a few numbers are trained beside the frozen weights"
    if not settings.trains or adapters or settings.peft != "none":
        added = {"peft": "lora"} if adapters else {}
        words = "lora over frozen weights" if adapters else "weights that are only read"
        if settings.trains and settings.base in (None, "fp32"):
            yield {**added, "base": "bf16"}, f"{words} in 16 bits"
        if not settings.is_packed:
            yield {**added, "base": "int8"}, f"{words} in 8 bits: little is lost"
        if settings.base not in FOUR_BITS:
            yield {**added, "base": "nf4" if settings.trains else "int4"}, f"{words} in 4 bits: measure what is lost"


def _more_devices(config: ModelConfig, settings: PlanSettings, available: int) -> Iterator[Change]:
    """The fewest devices that are enough; two where none are."""
    for name, words in (
        ("fsdp_ways", "weights, gradients and optimizer states cut up over devices"),
        ("tensor_ways", "layers cut up over devices"),
    ):
        if name == "fsdp_ways" and not settings.trains:
            continue
        enough = None
        for factor in MORE_DEVICES:
            change = {name: getattr(settings, name) * factor}
            tried = _tried(config, settings, (change, ""), available, None)
            if tried is not None and (enough is None or tried.fits):
                enough = change
            if tried is None or tried.fits:
                break
        if enough is not None:
            yield enough, words


def _tried(
    config: ModelConfig, settings: PlanSettings, change: Change, available: int, speed: Speed | None
) -> Suggestion | None:
    """The run with a change; None where the change makes no sense for it."""
    update, why = change
    try:
        changed = build_settings(PlanSettings, {**settings.model_dump(), **update}, "suggestion")
        phases = stage_phases(config, changed)
    except UserError:
        return None
    peak = fullest(phases).peak_bytes
    hours = duration(config, changed, phases, speed).hours
    return Suggestion(_written(settings, update), why, peak, peak <= available, hours)


def _together(
    config: ModelConfig, settings: PlanSettings, ordered: list[Change], available: int, speed: Speed | None
) -> Iterator[Suggestion]:
    """Changes upon changes until it fits; those of devices last, as many as it then takes."""
    update: dict[str, Any] = {}
    before = fullest(stage_phases(config, settings)).peak_bytes
    for change, _ in ordered:
        tried = _tried(config, settings, ({**update, **change}, "together"), available, speed)
        if _is_about_devices(change) or tried is None or tried.peak_bytes >= (1 - LEAST_GAIN) * before:
            continue
        update, before = {**update, **change}, tried.peak_bytes
        if tried.fits:
            yield tried
            return
    reduced = build_settings(PlanSettings, {**settings.model_dump(), **update}, "suggestion")
    for change, _ in _more_devices(config, reduced, available):
        tried = _tried(config, settings, ({**update, **change}, "together"), available, speed)
        if tried is not None and tried.fits:
            yield tried


def _is_about_devices(change: dict[str, Any]) -> bool:
    return any(name.endswith("_ways") for name in change)


def _written(settings: PlanSettings, update: dict[str, Any]) -> str:
    """The settings that differ, as on the command line."""
    changed = {name: value for name, value in update.items() if getattr(settings, name) != value}
    return " ".join(f"{name}={str(value).lower()}" for name, value in changed.items())


def _rank(suggestion: Suggestion) -> tuple[bool, bool, float]:
    """Sorting is stable, so equal ones stay in the order of how little they alter."""
    if not suggestion.fits:
        return True, False, suggestion.peak_bytes
    return False, "_ways=" in suggestion.change, round(suggestion.hours or 0.0, 3)


def suggested_lines(config: ModelConfig, settings: PlanSettings, available_bytes: int) -> list[str]:
    """The suggestions in words, best first: `gradient_checkpointing=true: ... (1.20 GB)`."""
    return [
        f"{each.change}: {each.why} ({short_bytes(each.peak_bytes)})"
        for each in suggestions(config, settings, available_bytes)
    ]
