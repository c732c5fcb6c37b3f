"""A plan as a person reads it: the parts of the peak with their shares, time, and what would help."""

from __future__ import annotations

from trivium.planner.chinchilla import LAWS
from trivium.planner.plan import Plan
from trivium.planner.rule_of_thumb import BYTES_MORE_TO_TRAIN, BYTES_TO_TRAIN, by_precision, rule_of_thumb
from trivium.planner.statement import PART_NAMES
from trivium.progress import short_bytes, short_number, short_time

BAR = 30
SUGGESTIONS_SHOWN = 8


def plan_table(plan: Plan) -> str:
    """All of a plan."""
    if plan.largest_rows_per_micro_batch is None:
        return rule_of_thumb_table(plan)
    blocks = [_head(plan), _parts(plan), _verdict(plan), _time(plan), _precisions(plan), _suggestions(plan)]
    blocks.append("taken for granted\n" + "".join(f"  {line}\n" for line in plan.assumptions))
    return "\n".join(block for block in blocks if block)


def rule_of_thumb_table(plan: Plan) -> str:
    """What is known of a number of parameters alone: the textbook's arithmetic."""
    number = plan.num_parameters
    thumb, more = rule_of_thumb(number), BYTES_MORE_TO_TRAIN
    lines = [
        f"{number:,} parameters, by the rule of thumb",
        "",
        f"  to store, fp32   {short_bytes(thumb['inference_bytes']):>8}   4 bytes a parameter",
        f"  to train, fp32   {short_bytes(thumb['training_bytes']):>8}   {sum(more.values())} bytes more: AdamW "
        f"{more['optimizer']}, gradients {more['gradients']}, activations and temporaries {more['activations']}; "
        f"{BYTES_TO_TRAIN} in all",
        f"  not {short_bytes(80 * number)}: that takes the 20 bytes more for 20 times the 4 bytes",
        "",
    ]
    stored = by_precision(number)
    for name, size in stored.items():
        less = f"{100 - 100 * size / stored['fp32']:.4g} % less" if name != "fp32" else ""
        lines.append(f"  {name:<6}{short_bytes(size):>19}   {less}".rstrip())
    return "\n".join([*lines, "", _verdict(plan).rstrip(), "", _time(plan).rstrip()]) + "\n"


def _head(plan: Plan) -> str:
    settings = plan.settings
    method = "" if settings.peft == "none" else f" by {settings.peft}"
    trained = "" if not settings.trains else f", {plan.num_trainable_parameters:,} of them trained{method}"
    if settings.trains and plan.num_trainable_parameters > plan.num_parameters:
        trained = f", {plan.num_trainable_parameters:,} trained"
    elif settings.peft not in ("none", "bias", "norms", "last_layers"):
        trained = f", and {plan.num_trainable_parameters:,} that are added and trained{method}"
    ways = [
        f"{count} {name}"
        for name, count in (
            ("data", settings.data_ways),
            ("fsdp", settings.fsdp_ways),
            ("tensor", settings.tensor_ways),
        )
        if count > 1
    ]
    devices = f", on each of {settings.devices} devices ({' x '.join(ways)})" if ways else ""
    return (
        f"{plan.model}: {plan.num_parameters:,} parameters{trained}\n{settings.stage}, {settings.precision}{devices}\n"
    )


def _parts(plan: Plan) -> str:
    """Each part with its share as a bar, and the peaks of all phases where there are several."""
    peak = plan.peak_bytes
    lines = []
    for key, name in {**PART_NAMES, "rollouts_bytes": "rollouts"}.items():
        size = getattr(plan.parts, key)
        if size:
            bar = "#" * max(1, round(BAR * size / peak))
            lines.append(f"  {name:<20}{short_bytes(size):>9}{100 * size / peak:>5.0f} %  {bar}")
    lines.append(f"  {'peak':<20}{short_bytes(peak):>9}")
    if len(plan.phases) > 1:
        lines += [f"  while in {name}: {short_bytes(parts.peak_bytes)}" for name, parts in plan.phases.items()]
    return "\n".join(lines) + "\n"


def _verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    room = plan.available_bytes - plan.peak_bytes
    there = f"{short_bytes(plan.available_bytes)} {'given' if plan.settings.memory else 'available here'}"
    if room < 0:
        text = f"does not fit: {short_bytes(-room)} more than the {there}"
    else:
        text = f"fits: {short_bytes(room)} of the {there} stay free"
    most = plan.largest_rows_per_micro_batch
    if most is not None:
        text += f"; at most {most:,} row{'' if most == 1 else 's'} at once" if most else "; not even one row at once"
    return text + "\n"


def _time(plan: Plan) -> str:
    """FLOPs, rate, hours, and the best use of the budget."""
    took, settings = plan.duration, plan.settings
    lines = [f"{short_number(took.tokens)} tokens, {took.total_flops:.3g} FLOPs ({took.flops_per_token:.3g} a token)"]
    if took.hours is None or took.tokens_per_second is None:
        lines.append("time unknown: machine=FILE names a file of `trivium doctor --json`, written where it is to run")
    else:
        bound = f"at {settings.utilisation:.0%} of the measured rate of products"
        if settings.stage in ("generate", "serve"):
            bound = "the limit that memory bandwidth sets"
        lines.append(f"about {_long(took.hours)}: {short_number(took.tokens_per_second)} tokens/s, {bound}")
    best = plan.compute_optimal
    if best is not None:
        lines.append(f"the best use of {best['flops']:.3g} training FLOPs:")
        for name in (*LAWS, "rule"):
            answer = best[name]
            lines.append(
                f"  {short_number(answer['parameters']):>6} parameters, {short_number(answer['tokens']):>6} tokens   "
                f"{answer['source']}"
            )
    return "\n".join(lines) + "\n"


def _precisions(plan: Plan) -> str:
    sizes = ", ".join(f"{name} {short_bytes(size)}" for name, size in by_precision(plan.num_parameters).items())
    thumb = rule_of_thumb(plan.num_parameters)
    return (
        f"weights alone: {sizes}\nrule of thumb: {short_bytes(thumb['inference_bytes'])} to store, "
        f"{short_bytes(thumb['training_bytes'])} to train in fp32\n"
    )


def _long(hours: float) -> str:
    """A duration in the unit a person would use: 3m 20s, 2h 05m, 12 days, 54 years."""
    days = hours / 24
    if days >= 2 * 365:
        return f"{days / 365:,.0f} years"
    return f"{days:.0f} days" if days >= 4 else short_time(3600 * hours)


def _suggestions(plan: Plan) -> str:
    """The best changes with what they come to."""
    if not plan.suggestions:
        return ""
    lines = ["for less memory" if plan.fits else "to make it fit"]
    for each in plan.suggestions[:SUGGESTIONS_SHOWN]:
        hours = "" if each.hours is None else f"  {_long(each.hours)}"
        fit = "fits" if each.fits else "too large"
        lines.append(f"  {short_bytes(each.peak_bytes):>9} {fit}{hours}  {each.change}: {each.why}")
    return "\n".join(lines) + "\n"
