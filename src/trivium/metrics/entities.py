"""Entities that tags name, and how many of them are found: precision, recall and F1 by exact spans.

The definition is that of CoNLL-2003 (Tjong Kim Sang and De Meulder): an entity is right when its first word, its last
word and its type are. What begins an entity: a B or S tag; any other tag of a type when the word before is outside, of
another type, or closed its entity (E, S). So one reading serves BIO (where each entity begins with B), IOB1 (only where
two of a type touch) and BIOES (L and U are read as E and S), and what a model predicts against the rules is read as it
was in that evaluation. `as_bio` writes any of them as BIO.

Invariants its tests check: hand-counted cases; the same entities, before and after `as_bio`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trivium.metrics.classification import ClassScore, score_of

OUTSIDE = "O"
_TAG = re.compile(r"(?P<mark>[BIESLUM])-(?P<type>.+)", re.DOTALL)
_BEGINS, _CLOSES = ("B", "S"), ("E", "S")


class Entity(NamedTuple):
    """Words `start` to `stop` (not included) that name something."""

    start: int
    stop: int
    type: str


@dataclass(frozen=True)
class EntityScores:
    """Of all entities together, and of each type."""

    overall: ClassScore
    per_type: dict[str, ClassScore]

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        named = {"overall": self.overall, **self.per_type}
        return {
            name: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
            for name, s in named.items()
        }


def names_entities(tags: Collection[str]) -> bool:
    """Whether these are tags of entities (B-PER, O, ...) and no others such as parts of speech."""
    return any(tag != OUTSIDE for tag in tags) and all(is_entity_tag(tag) for tag in tags)


def is_entity_tag(tag: str) -> bool:
    """Whether `tag` is O, or one of BIOES (or L, U, M), a hyphen and a type."""
    return tag == OUTSIDE or _TAG.fullmatch(tag) is not None


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of one text, in order. Tags that name none are outside."""
    found: list[Entity] = []
    start, open_type = 0, ""
    closed = True
    for place, tag in enumerate((*tags, OUTSIDE)):
        mark, kind = _parts(tag)
        if open_type and (closed or kind != open_type or mark in _BEGINS):
            found.append(Entity(start, place, open_type))
            open_type = ""
        if kind and not open_type:
            start, open_type = place, kind
        closed = mark in _CLOSES
    return found


def bio_of(entities: Sequence[Entity], words: int) -> list[str]:
    """The BIO tags of `words` words."""
    tags = [OUTSIDE] * words
    for start, stop, kind in entities:
        tags[start:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - start - 1)]
    return tags


def as_bio(tags: Sequence[str]) -> list[str]:
    """IOB1, BIO, BIOES or BILOU as BIO."""
    return bio_of(entities_of(tags), len(tags))


def entity_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> EntityScores:
    """Tags of texts against the right ones. ValueError where there are not equally many texts or words."""
    if len(predictions) != len(references):
        raise ValueError(f"tags of {len(predictions)} texts for {len(references)} texts")
    right: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for number, (guess, truth) in enumerate(zip(predictions, references, strict=True)):
        if len(guess) != len(truth):
            raise ValueError(f"text {number} has {len(guess)} predicted tags and {len(truth)} right ones")
        guessed, true = entities_of(guess), entities_of(truth)
        right.update(entity.type for entity in set(guessed) & set(true))
        predicted.update(entity.type for entity in guessed)
        actual.update(entity.type for entity in true)
    per_type = {kind: score_of(right[kind], predicted[kind], actual[kind]) for kind in sorted(predicted | actual)}
    return EntityScores(score_of(right.total(), predicted.total(), actual.total()), per_type)


def _parts(tag: str) -> tuple[str, str]:
    """(B, I, E, S or O; the type, empty when outside)."""
    match = _TAG.fullmatch(tag)
    if match is None:
        return OUTSIDE, ""
    return {"L": "E", "U": "S", "M": "I"}.get(match["mark"], match["mark"]), match["type"]
