"""The learning rate of each step, in closed form.

A function of the step's number alone: a resumed run needs no scheduler state, and a step that was left out does not
shift the ones after it. Invariant its test checks: the value at every step equals the formula written out by hand.
"""

from __future__ import annotations

import math

from trivium.training.settings import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Learning rate of step `step`, counted from 0.

    Warm-up of w steps gives peak (step + 1) / w, so that the first step is not wasted on a rate of 0. After it, with p
    rising from 0 (step w) to 1 (last step), the rate is peak (r + (1 - r) f(p)) with the final ratio r; of
    `inverse_sqrt` it is peak sqrt(w / (step + 1)), which never ends.
    """
    warmup = settings.resolved_warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "inverse_sqrt":
        return settings.learning_rate * math.sqrt(max(1, warmup) / (step + 1))
    ratio = settings.final_learning_rate_ratio
    return settings.learning_rate * (ratio + (1 - ratio) * _height(step, warmup, settings))


def _height(step: int, warmup: int, settings: TrainingSettings) -> float:
    """f(p): the curve's height above the final rate, 1 at the peak and 0 at the last step."""
    last = settings.steps - 1
    match settings.schedule:
        case "constant" | "inverse_sqrt":  # the latter has a formula of its own, above
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * _share(step, warmup, last)))
        case "linear":
            return 1 - _share(step, warmup, last)
        case "wsd":
            decay_steps = max(1, round(settings.decay_fraction * settings.steps))
            return 1 - _share(step, max(warmup, last - decay_steps), last)


def _share(step: int, first: int, last: int) -> float:
    """How far `step` is on the way from `first` (0) to `last` (1); 1 where there is no way to go."""
    if last <= first:
        return 1.0 if step > first else 0.0
    return min(1.0, max(0.0, (step - first) / (last - first)))
