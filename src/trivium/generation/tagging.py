"""The class of each word of a text: named entities, parts of speech; for models with a token head.

A text is given as words, and read as these with a blank between each two, so that its ids are those of the whole text.
The first token of a word tells its class (Devlin et al., 2019, section 5.3). Words that the tokenizer leaves nothing
of, and those beyond the model's length, are told none: `O` where the model knows it.

Invariants its test checks: the tags do not depend on the batch; the places are those of the words in the text.

Shapes: B texts, T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from trivium.errors import UserError
from trivium.generation.classify import head_scores
from trivium.generation.encoding import TOKENS_PER_BATCH, Wrapped, read_all
from trivium.generation.purposes import refuse_unless
from trivium.metrics.entities import OUTSIDE
from trivium.models.build import MODELS, Model
from trivium.models.config import ModelConfig
from trivium.progress import SILENT, Progress
from trivium.tokenizer.offsets import Placed, PlaceEncoder

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class WordRow:
    """The words of one text, as the model reads them."""

    wrapped: Wrapped
    places: tuple[int | None, ...]
    """Of each word the position that tells its class; None: there is none."""
    num_cut: int
    """How many words did not fit."""


class WordRows:
    """From words to what a model reads."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, length: int = 0) -> None:
        """Texts of at most `length` positions (0: what the model can read). UserError where that leaves no room."""
        self._tokenizer, self._encoder = tokenizer, PlaceEncoder(tokenizer)
        self.length = min(length or config.max_positions, config.max_positions)
        self._begin = tokenizer.wrap([-1])[0].index(-1)
        self._room = self.length - len(tokenizer.wrap([])[0])
        if self._room < 1:
            raise UserError(f"a row of {self.length} tokens has no room for a word: give it more")

    def place_all(self, sentences: Sequence[Sequence[str]]) -> list[WordRow]:
        """One row for each text."""
        placed = self._encoder.encode_batch([" ".join(words) for words in sentences])
        return [self._row(words, each) for words, each in zip(sentences, placed, strict=True)]

    def _row(self, words: Sequence[str], placed: Placed) -> WordRow:
        firsts = first_tokens(words, placed.ranges)
        places = tuple(None if first is None or first >= self._room else first + self._begin for first in firsts)
        cut = sum(first is not None and first >= self._room for first in firsts)
        return WordRow(Wrapped(*self._tokenizer.wrap(placed.ids[: self._room])), places, cut)


def first_tokens(words: Sequence[str], ranges: Sequence[tuple[int, int]]) -> list[int | None]:
    """Of each word the first token that holds a character of it, by the characters of all tokens in the joined text;
    None where there is none, or it is the first of an earlier word."""
    found: list[int | None] = []
    token = begin = 0
    for word in words:
        stop = begin + len(word)
        while token < len(ranges) and (ranges[token][1] <= begin or ranges[token][0] == ranges[token][1]):
            token += 1
        here = token < len(ranges) and ranges[token][0] < stop and word != ""
        found.append(token if here else None)
        token += here
        begin = stop + 1
    return found


def tag(model: Model, tokenizer: Tokenizer, words: Sequence[str]) -> list[str]:
    """The tag of each word of one text; see `tags`."""
    return tags(model, tokenizer, [words])[0]


def tags(
    model: Model,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    *,
    length: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress = SILENT,
) -> list[list[str]]:
    """The tag of each word of each text, read to at most `length` tokens (0: what the model can read).

    UserError for a model without a token head, and for scores without end.
    """
    if isinstance(sentences, str) or any(isinstance(words, str) for words in sentences):
        raise TypeError("a text is given as its words: 'a b'.split(), for instance")
    config = model.config
    refuse_unless(config, "tagging", list(MODELS), ["token_classification"])
    rows = WordRows(tokenizer, config, length).place_all(sentences)
    scores = read_all(
        model,
        [row.wrapped for row in rows],
        lambda inputs: head_scores(model, inputs),
        tokens_per_batch=tokens_per_batch,
        progress=progress,
        description="tagging texts",
    )
    return [tags_of(row.places, scores_TC, config.labels) for row, scores_TC in zip(rows, scores, strict=True)]


def tags_of(places: Sequence[int | None], scores_TC: Tensor, labels: Sequence[str]) -> list[str]:
    """The likeliest tag at each place; where a word has none, `O`, or in a set of classes without it the first."""
    if not scores_TC.isfinite().all():
        raise UserError(
            "the model's scores are not finite, so no tag can be chosen: its weights are damaged, or overflow in its "
            "precision (load it in fp32 or bf16)"
        )
    chosen = scores_TC.argmax(-1).tolist()
    untold = OUTSIDE if OUTSIDE in labels else labels[0]
    return [untold if place is None else labels[chosen[place]] for place in places]
