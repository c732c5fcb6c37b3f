"""What making tasks from ids must know of a tokenizer: the special ids, what may be drawn, and where things begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivium.data.objectives_settings import (
    DenoiseSettings,
    MaskedSettings,
    MixtureSettings,
    ObjectiveSettings,
    SpansSettings,
)
from trivium.errors import UserError
from trivium.models.config import Kind

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

Ids = NDArray[np.int64]

# Sentinels that stand for the modes of a mixture (R, S, X) rather than for spans.
MODE_SENTINELS = 3
_SENTENCE_END = (".", "!", "?", "\u3002", "\uff01", "\uff1f")


@dataclass(frozen=True)
class Marks:
    """Ids with a meaning of their own. Two texts of equal ids and equal marks give equal tasks."""

    before: tuple[int, ...]
    """What stands before a text in the model's input."""
    after: tuple[int, ...]
    """What stands after it."""
    ordinary: Ids
    """All ids that are not special, ascending."""
    pad_id: int = 0
    """What fills rows up; never read nor learned."""
    start_id: int = 0
    """What an encoder-decoder's target begins with, given and not learned."""
    mask_id: int | None = None
    """What stands for a hidden token."""
    sentinels: tuple[int, ...] = ()
    """What stands for the first span, the second, ..."""
    sentence_ends: Ids | None = None
    """Ids after which a sentence ends; None: nobody asks."""
    word_starts: Callable[[Sequence[int]], Sequence[bool]] | None = None
    """Which of some ids begin a word."""

    @property
    def width(self) -> int:
        """How many marks stand around a text."""
        return len(self.before) + len(self.after)

    @cached_property
    def _is_ordinary(self) -> NDArray[np.bool_]:
        """One entry for each id up to the last ordinary one."""
        table = np.zeros(int(self.ordinary.max()) + 1, dtype=bool)
        table[self.ordinary] = True
        return table

    def are_ordinary(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of some ids are not special."""
        known = self._is_ordinary
        found: NDArray[np.bool_] = (ids < len(known)) & known[np.minimum(ids, len(known) - 1)]
        return found

    def wrapped(self, ids: Ids) -> Ids:
        """A text with its marks."""
        return np.concatenate([self.before, ids, self.after]).astype(np.int64)


def marks_of(tokenizer: Tokenizer, objective: ObjectiveSettings, start_id: int = 0) -> Marks:
    """The marks of a tokenizer, as far as `objective` needs them; `start_id` is the model's `decoder_start_id`."""
    special = set(tokenizer.special_tokens.values())
    ordinary = np.array([token for token in range(tokenizer.vocab_size) if token not in special], np.int64)
    before, after = around(tokenizer, int(ordinary[0]))
    permutes = isinstance(objective, DenoiseSettings) and objective.permute_sentences
    return Marks(
        before=before,
        after=after,
        ordinary=ordinary,
        pad_id=tokenizer.pad_id or 0,
        start_id=start_id,
        mask_id=tokenizer.mask_id,
        sentinels=tuple(tokenizer.sentinel_ids),
        sentence_ends=sentence_ends(tokenizer, ordinary) if permutes else None,
        word_starts=tokenizer.word_starts,
    )


def around(tokenizer: Tokenizer, some_id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a single text."""
    wrapped, _ = tokenizer.wrap([some_id])
    place = wrapped.index(some_id)
    return tuple(wrapped[:place]), tuple(wrapped[place + 1 :])


def sentence_ends(tokenizer: Tokenizer, ordinary: Ids) -> Ids:
    """The ids whose text ends with a full stop, an exclamation or a question mark, or holds a line end."""
    texts = (tokenizer.decode([int(token)]) for token in ordinary)
    ends = [text.rstrip().endswith(_SENTENCE_END) or "\n" in text for text in texts]
    found: Ids = ordinary[np.array(ends, dtype=bool)]
    return found


def refuse_missing_marks(objective: ObjectiveSettings, kind: Kind, marks: Marks) -> None:
    """UserError where the tokenizer lacks a token that the objective cannot do without."""
    missing = None
    if isinstance(objective, MaskedSettings | DenoiseSettings) and marks.mask_id is None:
        missing = "a mask token"
    elif isinstance(objective, SpansSettings | MixtureSettings) and len(marks.sentinels) <= MODE_SENTINELS:
        missing = "sentinels (<extra_id_0>, <extra_id_1>, ...)"
    elif kind == "encoder-decoder" and not marks.after:
        missing = "a token at the end of its texts, by which a target would end"
    if missing:
        raise UserError(
            f"objective.name={objective.name} needs {missing}, which the tokenizer lacks: leave tokenizer.path out, so "
            "that the run learns one, or name another"
        )
