"""Named entities told in words: a line for each, its type and its words, in the order of the text.

    PER: Mira Stone
    LOC: Old Town

A text without any is answered `none`. What is written is scored as entities are (precision, recall, F1), but that an
entity is known by its type and its words, since what is written has no place in the text. Invariant its test checks:
what is written of right tags has an F1 of 1, and reads back as the same entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trivium.data.conll import Sentence
from trivium.errors import UserError
from trivium.finetuning.told_by_text import ToldTask
from trivium.metrics.classification import score_of
from trivium.metrics.entities import entities_of

NONE = "none"
Tags = Callable[[Sentence], Sequence[str]]


def entities_told(tags: Tags, facts: Mapping[str, Any], *, entities: bool, types: Sequence[str]) -> ToldTask[Sentence]:
    """The task in words; `tags` are a sentence's in BIO. UserError for tags of other things than entities."""
    if not entities:
        raise UserError("task=tag by text writes entities, and these tags name none (B-..., I-...): use task.by=head")
    how = f"Write each {', '.join(types)} of the text on a line, as TYPE: WORDS, or {NONE} where there are none."
    return ToldTask(
        asked=lambda sentence: f"{how}\n\n{sentence.text}",
        answer=lambda sentence: written(sentence.words, tags(sentence)),
        where=lambda sentence: sentence.where,
        score=lambda said, sentences: written_measures(said, [written(each.words, tags(each)) for each in sentences]),
        facts=facts,
    )


def written(words: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a text in words."""
    return "\n".join(f"{kind}: {' '.join(words[start:stop])}" for start, stop, kind in entities_of(tags)) or NONE


def read(text: str) -> Counter[tuple[str, str]]:
    """(type, words) of what is written, each as often as it is; lines that name no entity are passed over."""
    found: Counter[tuple[str, str]] = Counter()
    for line in text.splitlines():
        kind, colon, words = line.partition(":")
        if colon and kind.strip() and words.strip():
            found[kind.strip(), " ".join(words.split())] += 1
    return found


def written_measures(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """{"entity_precision", "entity_recall", "entity_f1", "entity_f1_TYPE"} over all texts."""
    hits: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for guess, truth in zip(map(read, said), map(read, right), strict=True):
        for counts, entities in ((hits, guess & truth), (predicted, guess), (actual, truth)):
            for (kind, _), count in entities.items():
                counts[kind] += count
    overall = score_of(hits.total(), predicted.total(), actual.total())
    per_type = {kind: score_of(hits[kind], predicted[kind], actual[kind]).f1 for kind in sorted(actual)}
    return {
        "entity_precision": overall.precision,
        "entity_recall": overall.recall,
        "entity_f1": overall.f1,
        **{f"entity_f1_{kind}": f1 for kind, f1 in per_type.items()},
    }
