"""The pipe from a model's scores to the scores that are chosen from: pure functions, composed once.

Shapes: B rows, V vocabulary. Scores are unnormalised log-probabilities; a token that was dropped has score -inf, and
every filter of sampling keeps at least the likeliest token. The order, and each filter's result, is that of
`transformers`: repetition penalty (CTRL, Keskar et al. 2019, eq. 6), no n-gram twice (Paulus et al. 2017, section
2.5), suppressed and forced tokens; and for sampling temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020),
min-p (Nguyen et al. 2024). One departure: temperature first shifts the scores so that the best is 0, which leaves the
distribution as it is and keeps small temperatures from overflowing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings


@dataclass(frozen=True)
class Past:
    """What filters may know of the rows: B entries in each field."""

    ids: Sequence[Sequence[int]]
    """The ids that each row holds: prompt and text, or what the decoder of an encoder-decoder has read; may be empty
    where no n-grams are forbidden."""
    num_new: Sequence[int]
    """How many of them are new: those of the text."""
    limits: Sequence[int]
    """How many new ids the row has room for."""
    seen_BV: Tensor | None = None
    """(B, V) bool: the tokens among `ids`; None where no penalty needs them."""


ScoreFilter = Callable[[Tensor, Past], Tensor]
# scores (B, V) fp32 and what is known of the rows -> scores (B, V)
Pipe = Callable[[Tensor, Past], Tensor]


def penalise_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of the tokens already seen by `penalty`."""
    penalised_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, penalised_BV, scores_BV)


def forbid_repeated_ngrams(scores_BV: Tensor, ids: Sequence[Sequence[int]], n: int) -> Tensor:
    """Drop the tokens that would end a run of `n` tokens that the row's `ids` hold already."""
    rows, banned = [], []
    for row, text in enumerate(ids):
        tail = list(text[len(text) - n + 1 :]) if len(text) >= n else None
        for start in range(len(text) - n + 1):
            if list(text[start : start + n - 1]) == tail:
                rows.append(row)
                banned.append(text[start + n - 1])
    return _dropped(scores_BV, rows, banned)


def suppress(scores_BV: Tensor, rows: Collection[int], ids: Collection[int]) -> Tensor:
    """Drop the tokens `ids` in `rows`; ids the vocabulary does not have are none to drop."""
    known = [token for token in ids if token < scores_BV.shape[-1]]
    return _dropped(scores_BV, [row for row in rows for _ in known], known * len(rows))


def force(scores_BV: Tensor, rows: Collection[int], token: int) -> Tensor:
    """In `rows` nothing is possible but `token`, with score 0."""
    if not rows:
        return scores_BV
    forced_BV = scores_BV.clone()
    forced_BV[list(rows)] = -math.inf
    forced_BV[list(rows), token] = 0.0
    return forced_BV


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


def build_pipe(settings: GenerationSettings, ends: Collection[int] = (), *, forces: bool = False) -> Pipe:
    """The filters that `settings` ask for, as one function; greedy leaves before those of sampling.

    `ends` are the ids that `min_new_tokens` holds back; `forces` says whether forced ids apply (encoder-decoders).
    """
    filters = [*_rules(settings, frozenset(ends), forces), *([] if settings.greedy else _sampling(settings))]

    def pipe(scores_BV: Tensor, past: Past) -> Tensor:
        for score_filter in filters:
            scores_BV = score_filter(scores_BV, past)
        return scores_BV

    return pipe


def _rules(settings: GenerationSettings, ends: frozenset[int], forces: bool) -> list[ScoreFilter]:
    """What holds however the token is chosen."""
    bos, eos = (settings.forced_bos_id, settings.forced_eos_id) if forces else (None, None)
    filters: list[ScoreFilter] = []
    if settings.repetition_penalty != 1.0:

        def penalise(scores_BV: Tensor, past: Past) -> Tensor:
            assert past.seen_BV is not None
            return penalise_repetition(scores_BV, past.seen_BV, settings.repetition_penalty)

        filters.append(penalise)
    if settings.no_repeat_ngram_size > 0:
        filters.append(lambda scores, past: forbid_repeated_ngrams(scores, past.ids, settings.no_repeat_ngram_size))
    if settings.suppressed_ids:
        filters.append(lambda scores, past: suppress(scores, range(len(past.num_new)), settings.suppressed_ids))
    if settings.min_new_tokens > 0 and ends:
        filters.append(lambda scores, past: suppress(scores, _with(past, range(settings.min_new_tokens)), ends))
    if bos is not None:
        filters.append(lambda scores, past: force(scores, _with(past, range(1)), bos))
    if eos is not None:
        filters.append(lambda scores, past: force(scores, _at_the_limit(past), eos))
    return filters


def _sampling(settings: GenerationSettings) -> list[ScoreFilter]:
    """What shapes the distribution that is drawn from."""
    filters: list[ScoreFilter] = []
    if settings.temperature != 1.0:
        filters.append(lambda scores, _: apply_temperature(scores, settings.temperature))
    if settings.top_k > 0:
        filters.append(lambda scores, _: keep_top_k(scores, settings.top_k))
    if settings.top_p < 1.0:
        filters.append(lambda scores, _: keep_top_p(scores, settings.top_p))
    if settings.min_p > 0.0:
        filters.append(lambda scores, _: keep_min_p(scores, settings.min_p))
    return filters


def _with(past: Past, counts: range) -> list[int]:
    """The rows whose number of new ids is among `counts`."""
    return [row for row, count in enumerate(past.num_new) if count in counts]


def _at_the_limit(past: Past) -> list[int]:
    """The rows whose next token is their last."""
    return [row for row, (count, limit) in enumerate(zip(past.num_new, past.limits, strict=True)) if count + 1 >= limit]


def _dropped(scores_BV: Tensor, rows: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Scores with -inf at each (row, id). UserError when a row is left without any token."""
    if not rows:
        return scores_BV
    dropped_BV = scores_BV.clone()
    dropped_BV[rows, ids] = -math.inf
    if dropped_BV.amax(-1).isneginf().any():
        raise UserError(
            "every token of the vocabulary is forbidden: make no_repeat_ngram_size larger (0 is off) or "
            "suppressed_ids fewer"
        )
    return dropped_BV
