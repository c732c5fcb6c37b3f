"""Masked language modelling: which tokens are hidden, and by what (Devlin et al., 2019, section 3.1).

Of a text of n tokens, round(share n), at least one, are to be restored. What stands in for each is drawn independently:
the mask token (80 %), a random token (10 %), or the token itself (10 %), so that a model must have an opinion of every
position. With whole words, words are taken in random order, each with all its tokens, as long as they fit that number.

Departs from the paper: random tokens are never special ones; and masks are drawn anew for each epoch (Liu et al.,
2019). Invariants its test checks: counts are exact, shares are 80/10/10 within what chance allows, special tokens are
never touched, and (input, target) give the text back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORED

Ids = NDArray[np.int64]


def mask_tokens(
    ids: Ids,
    draw: np.random.Generator,
    *,
    mask_id: int,
    ordinary_ids: Ids,
    share: float = 0.15,
    hidden_share: float = 0.8,
    random_share: float = 0.1,
    maskable: NDArray[np.bool_] | None = None,
    word_starts: Sequence[bool] | None = None,
) -> tuple[Ids, Ids]:
    """(input, target) of a text: (n,) each, the target `IGNORED` where nothing is to be restored.

    `ordinary_ids`: what random tokens are drawn from. `maskable` (n,): which positions may be hidden; None: all.
    `word_starts` (n): where words begin; given, whole words are hidden.
    """
    places = np.arange(len(ids)) if maskable is None else np.flatnonzero(maskable)
    chosen = _words(places, word_starts, share, draw) if word_starts is not None else _tokens(places, share, draw)
    inputs, targets = ids.copy(), np.full(len(ids), IGNORED, np.int64)
    targets[chosen] = ids[chosen]
    fate = draw.random(len(chosen))
    others = draw.choice(ordinary_ids, len(chosen))
    inputs[chosen] = np.where(
        fate < hidden_share, mask_id, np.where(fate < hidden_share + random_share, others, ids[chosen])
    )
    return inputs, targets


def num_masked(tokens: int, share: float) -> int:
    """How many of so many tokens are to be restored."""
    return min(tokens, max(1, round(tokens * share)))


def _tokens(places: Ids, share: float, draw: np.random.Generator) -> Ids:
    return draw.choice(places, num_masked(len(places), share), replace=False)


def _words(places: Ids, word_starts: Sequence[bool], share: float, draw: np.random.Generator) -> Ids:
    """Positions of whole words, in random order of the words; one word at least, however long."""
    number_of_word = np.cumsum(np.asarray(word_starts, dtype=bool))[places]
    words = [places[number_of_word == number] for number in np.unique(number_of_word)]
    chosen: list[Ids] = []
    wanted, count = num_masked(len(places), share), 0
    for number in draw.permutation(len(words)):
        if not chosen or count + len(words[number]) <= wanted:
            chosen.append(words[number])
            count += len(words[number])
        if count >= wanted:
            break
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
