"""The pipe from a model's scores to the scores that are sampled from: pure functions, composed once.

Shapes: B rows, V vocabulary. Scores are unnormalised log-probabilities; a token that was dropped has score -inf, and
every filter keeps at least the likeliest token. The order, and each filter's result, is that of `transformers`:
repetition penalty (CTRL, Keskar et al. 2019, eq. 6), temperature, top-k (Fan et al. 2018), top-p (Holtzman et al.
2020), min-p (Nguyen et al. 2024). One departure: temperature first shifts the scores so that the best is 0, which
leaves the distribution as it is and keeps small temperatures from overflowing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trivium.generation.settings import GenerationSettings

ScoreFilter = Callable[[Tensor], Tensor]
# (scores (B, V) fp32, seen (B, V) bool: the tokens that the row's prompt and text hold, or None) -> scores
# (B, V)
Pipe = Callable[[Tensor, Tensor | None], Tensor]


def penalise_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of the tokens already seen by `penalty`."""
    penalised_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, penalised_BV, scores_BV)


def apply_temperature(scores_BV: Tensor, temperature: float) -> Tensor:
    """Scores divided by `temperature` (> 0), up to a constant per row."""
    return (scores_BV - scores_BV.amax(-1, keepdim=True)) / temperature


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Drop the tokens that score less than the k-th best; ties with it stay."""
    threshold_B1 = scores_BV.topk(min(k, scores_BV.shape[-1]), dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < threshold_B1, -math.inf)


def keep_top_p(scores_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p`."""
    sorted_BV, order_BV = scores_BV.sort(dim=-1, descending=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    drop_BV = before_BV >= p
    drop_BV[:, 0] = False
    return scores_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV), -math.inf)


def keep_min_p(scores_BV: Tensor, p: float) -> Tensor:
    """Drop the tokens less likely than `p` (> 0) times the likeliest one."""
    return scores_BV.masked_fill(scores_BV < scores_BV.amax(-1, keepdim=True) + math.log(p), -math.inf)


def build_pipe(settings: GenerationSettings) -> Pipe:
    """The filters that `settings` ask for, as one function; greedy leaves after the repetition penalty."""
    filters: list[ScoreFilter] = []
    if not settings.greedy:
        if settings.temperature != 1.0:
            filters.append(lambda scores_BV: apply_temperature(scores_BV, settings.temperature))
        if settings.top_k > 0:
            filters.append(lambda scores_BV: keep_top_k(scores_BV, settings.top_k))
        if settings.top_p < 1.0:
            filters.append(lambda scores_BV: keep_top_p(scores_BV, settings.top_p))
        if settings.min_p > 0.0:
            filters.append(lambda scores_BV: keep_min_p(scores_BV, settings.min_p))

    def pipe(scores_BV: Tensor, seen_BV: Tensor | None) -> Tensor:
        if seen_BV is not None:
            scores_BV = penalise_repetition(scores_BV, seen_BV, settings.repetition_penalty)
        for score_filter in filters:
            scores_BV = score_filter(scores_BV)
        return scores_BV

    return pipe
