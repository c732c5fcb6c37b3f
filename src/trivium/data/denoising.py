"""BART's noise (Lewis et al., 2020, section 2.2): five ways to spoil a text, each switchable, in a fixed order.

sentence permutation -> rotation -> deletion -> infilling -> masking of single tokens

Infilling draws span lengths from a Poisson distribution until round(share n) tokens are covered (the last span is cut
to fit), places the spans at random without overlap, and puts one mask for each; a span of length 0 inserts a mask.
Masks of length 0 are left out where the source would become longer than the text, so that its room is known before.

Sentences end where the token says so (see `Marks.sentence_ends`); the paper splits at full stops. Invariants its test
checks: each noise alone leaves exactly what it should (a subsequence, a rotation, the same sentences); shares are
exact; span lengths follow the Poisson distribution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trivium.data.objectives_settings import DenoiseSettings

Ids = NDArray[np.int64]


def add_noise(
    ids: Ids, draw: np.random.Generator, settings: DenoiseSettings, *, mask_id: int, sentence_ends: Ids
) -> Ids:
    """The spoilt text, never longer than `ids`, without marks at its ends."""
    if settings.permute_sentences:
        ids = permute_sentences(ids, draw, sentence_ends)
    if settings.rotate:
        ids = rotate(ids, draw)
    if settings.delete_share:
        ids = delete(ids, draw, settings.delete_share)
    if settings.infill_share:
        ids = infill(ids, draw, settings.infill_share, settings.poisson_mean, mask_id)
    if settings.mask_share:
        ids = mask_singly(ids, draw, settings.mask_share, mask_id)
    return ids


def permute_sentences(ids: Ids, draw: np.random.Generator, sentence_ends: Ids) -> Ids:
    """The sentences in random order; what follows the last end is a sentence too."""
    ends = np.flatnonzero(np.isin(ids, sentence_ends)) + 1
    sentences = [part for part in np.split(ids, ends) if len(part)]
    return np.concatenate([sentences[number] for number in draw.permutation(len(sentences))])


def rotate(ids: Ids, draw: np.random.Generator) -> Ids:
    """The text from a random token on, then what was before it."""
    return np.roll(ids, -int(draw.integers(len(ids))))


def delete(ids: Ids, draw: np.random.Generator, share: float) -> Ids:
    """The text without round(share n) random tokens; one token is left at least."""
    count = min(round(len(ids) * share), len(ids) - 1)
    return np.delete(ids, draw.choice(len(ids), count, replace=False))


def mask_singly(ids: Ids, draw: np.random.Generator, share: float, mask_id: int) -> Ids:
    """The text with the mask in place of round(share n) random tokens."""
    masked = ids.copy()
    masked[draw.choice(len(ids), round(len(ids) * share), replace=False)] = mask_id
    return masked


def span_lengths(tokens: int, draw: np.random.Generator, mean: float) -> Ids:
    """Poisson lengths that add up to `tokens`, the last one cut to fit; as many of 0 as came up, so far as they fit."""
    lengths: list[int] = []
    left = tokens
    while left > 0:
        length = min(int(draw.poisson(mean)), left)
        lengths.append(length)
        left -= length
    # Each span of one or more saves length - 1 positions, each of 0 costs one: never more than were saved.
    saved = sum(length - 1 for length in lengths if length)
    kept, inserted = [], 0
    for length in lengths:
        inserted += length == 0
        if length or inserted <= saved:
            kept.append(length)
    return np.array(kept, dtype=np.int64)


def infill(ids: Ids, draw: np.random.Generator, share: float, mean: float, mask_id: int) -> Ids:
    """The text with one mask for each of several spans that cover round(share n) tokens."""
    covered = min(round(len(ids) * share), len(ids))
    lengths = draw.permutation(span_lengths(covered, draw, mean))
    if not len(lengths):
        return ids
    # Deal the tokens that stay, and the spans, out in one random order: a span stands before or after a token.
    kept = len(ids) - covered
    is_span = np.zeros(kept + len(lengths), dtype=bool)
    is_span[draw.choice(len(is_span), len(lengths), replace=False)] = True
    sizes = np.ones(len(is_span), np.int64)
    sizes[is_span] = lengths
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.where(is_span, mask_id, ids[np.minimum(starts, len(ids) - 1)])
