"""The class of each word of a text: named entities, or any other tags. By a head (in words: `entities_by_text.py`).

The loss is the cross-entropy of each word's tag at the first token of the word, summed over words; all other positions
are not learned (Devlin et al., 2019, section 5.3). Tags of entities are learned as BIO, in whatever scheme the files
have them (`metrics/entities.py`). Measured on held-out rows: precision, recall and F1 of whole entities, F1 of each
type (CoNLL-2003), and the share of words whose tag is right; of other tags that share and the mean F1 of the classes.
Words that do not fit into a row are told `O` there, and so count as missed.

Invariant its test checks: padding, the order of the rows and the size of micro-batches change neither the loss nor the
gradient, which are those of `transformers`.

Shapes: B rows, T positions, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.data.batch import IGNORED, Batch
from trivium.data.conll import Sentence, sentences_of, tagged_rows
from trivium.errors import UserError, nearest
from trivium.finetuning.entities_by_text import entities_told
from trivium.finetuning.head_rows import HeadExample, head_result
from trivium.finetuning.head_tasks import HeadTask, Judged, by_text, prepared_head_task, refuse_for_heads
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.source_rows import SourceExamples, Split, read_split
from trivium.finetuning.task_settings import TagSettings
from trivium.finetuning.told_by_text import prepared_told_task
from trivium.generation.tagging import WordRow, WordRows, tags_of
from trivium.metrics.classification import accuracy, f1_macro
from trivium.metrics.entities import OUTSIDE, as_bio, entities_of, entity_scores, is_entity_tag, names_entities
from trivium.models.config import ModelConfig
from trivium.progress import Progress
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.objective import LossReport


@dataclass(frozen=True)
class TaggingObjective:
    """Cross-entropy of the words' tags, summed over words, in nats; "correct" among the scalars counts right ones."""

    def loss(self, model: nn.Module, batch: Batch) -> LossReport:
        """The summed loss; `batch.targets` is (B, T): the tag of the word that begins there, or IGNORED."""
        logits_BTC = head_result(model, batch)
        loss = F.cross_entropy(logits_BTC.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
        correct = (logits_BTC.argmax(-1) == batch.targets).sum()
        return LossReport(loss, batch.num_targets, {"correct": correct})


@dataclass(frozen=True)
class Tagged:
    """Words with their tags in words, and as the model reads them."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    row: WordRow


def prepare(recipe: FinetuneRecipe, tokenizer: Tokenizer, config: ModelConfig, progress: Progress) -> PreparedTask:
    """The rows of a recipe whose task is to tag words; see `Prepare`."""
    settings = recipe.task
    assert isinstance(settings, TagSettings)
    split = read_split(recipe.data, sentences_of, lambda sentence: sentence.text, read=tagged_rows)
    tagset = TagSet.of(split, settings, config)
    if by_text(settings.by, config, "tagging"):
        told = entities_told(tagset.tags, tag_facts(split, tagset), entities=tagset.entities, types=tagset.types)
        return prepared_told_task(recipe, tokenizer, config, split, told, progress)
    refuse_for_heads(recipe)
    rows = WordRows(tokenizer, config, recipe.data.sequence_length)
    placed = _placed(split, tagset, rows)
    task: HeadTask[Tagged] = HeadTask(
        objective=TaggingObjective(),
        head="token_classification",
        labels=tagset.labels,
        make=lambda examples: [_example(each, tagset, config) for each in examples],
        length=rows.length,
        asked=lambda example: " ".join(example.words),
        judge=lambda results, examples: _judged(results, examples, tagset),
        facts=tag_facts(split, tagset),
        notes=lambda: _notes(split, placed, rows.length),
    )
    return prepared_head_task(recipe, tokenizer, config, placed, task)


@dataclass(frozen=True)
class TagSet:
    """The tags of a task, and how those of the files become them."""

    labels: tuple[str, ...]
    named: tuple[str, ...]
    """What the numbers in the files stand for; empty: there are no names for them."""
    entities: bool
    """Whether they are tags of entities, in BIO."""

    @classmethod
    def of(cls, split: Split[Sentence], settings: TagSettings, config: ModelConfig) -> TagSet:
        """The recipe's tags, else those of a model that tags already and knows all of the rows', else those of the
        training rows. UserError for tags of which some name entities and others do not."""
        known = [*split.learned, *([] if split.validated else split.tested)]
        found = {tag for sentence in known for tag in sentence.tags if isinstance(tag, str)}
        used = set(settings.labels) or found
        if not used:
            raise UserError(
                f"{known[0].where}: its tags are numbers: name the classes, in the order of their numbers, in "
                "task.labels"
            )
        entities = names_entities(used)
        if not entities and OUTSIDE in used and any(is_entity_tag(tag) for tag in used - {OUTSIDE}):
            odd = sorted(tag for tag in used if not is_entity_tag(tag))[0]
            where = next((sentence.where for sentence in known if odd in sentence.tags), "task.labels")
            raise UserError(f"{where}: the tag {odd!r} is neither O nor a mark, a hyphen and a type, as the others are")
        labels = bio_labels(used) if entities else tuple(sorted(used, key=lambda tag: (tag != OUTSIDE, tag)))
        if set(settings.labels) == set(labels):
            labels = settings.labels
        if not settings.labels and config.head == "token_classification" and set(labels) <= set(config.labels):
            labels = config.labels
        if len(labels) < 2 or len(set(settings.labels)) < len(settings.labels):
            listed = ", ".join(settings.labels or labels)
            raise UserError(f"tags are {listed}: there must be two or more, each once (task.labels names them)")
        return cls(labels, settings.labels, entities)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of entities, in the order of their labels."""
        return tuple(dict.fromkeys(entity.type for tag in self.labels for entity in entities_of([tag])))

    def tags(self, sentence: Sentence) -> tuple[str, ...]:
        """A sentence's tags in words, those of entities in BIO. UserError, with file and row, for unknown ones."""
        tags = [self._named(tag, sentence) if isinstance(tag, int) else tag for tag in sentence.tags]
        known = self.entities and all(map(is_entity_tag, tags))
        tags = as_bio(tags) if known else tags
        for tag in tags:
            if tag not in self.labels:
                near = nearest(tag, self.labels)
                listed = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
                raise UserError(
                    f"{sentence.where}: the tag {tag!r} is none of the {len(self.labels)} ({listed}); "
                    + (f"did you mean {near!r}? " if near else "")
                    + "mend the row, or name all tags in task.labels"
                )
        return tuple(tags)

    def _named(self, number: int, sentence: Sentence) -> str:
        if 0 <= number < len(self.named):
            return self.named[number]
        there = f"there are {len(self.named)}" if self.named else "and task.labels names none"
        raise UserError(f"{sentence.where}: the tag {number} is the number of a class, {there} (task.labels, from 0)")


def bio_labels(tags: set[str]) -> tuple[str, ...]:
    """`O`, and for each type of entity in these tags its B and I."""
    types = sorted({entity.type for tag in tags for entity in entities_of([tag])})
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in "BI"))


def tag_facts(split: Split[Sentence], tagset: TagSet) -> dict[str, Any]:
    """Texts and words, and how many entities of each type (or words of each tag) are learned."""
    learned = [tagset.tags(sentence) for sentence in split.learned]
    counted = Counter(entity.type for tags in learned for entity in entities_of(tags))
    return {
        "rows": len(learned),
        "held_out_rows": len(split.tested),
        "words": sum(map(len, learned)),
        **({"entities": dict(counted)} if tagset.entities else {"tags": dict(Counter(chain(*learned)))}),
    }


def tag_measures(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], entities: bool
) -> dict[str, float]:
    """Of entities {"entity_precision", "entity_recall", "entity_f1", "entity_f1_TYPE", "accuracy"}; of other tags
    {"accuracy", "f1_macro"}. Empty for no text."""
    if not references:
        return {}
    said, right = list(chain(*predictions)), list(chain(*references))
    if not entities:
        return {"accuracy": accuracy(said, right), "f1_macro": f1_macro(said, right)}
    scores = entity_scores(predictions, references)
    return {
        "entity_precision": scores.overall.precision,
        "entity_recall": scores.overall.recall,
        "entity_f1": scores.overall.f1,
        **{f"entity_f1_{kind}": score.f1 for kind, score in scores.per_type.items()},
        "accuracy": accuracy(said, right),
    }


def told(words: Sequence[str], tags: Sequence[str], entities: bool) -> str:
    """What tags say of words, to be read: `PER: Mira; LOC: Old Town`, or each word with its tag."""
    if not entities:
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    return "; ".join(f"{kind}: {' '.join(words[start:stop])}" for start, stop, kind in entities_of(tags)) or "(none)"


def _placed(split: Split[Sentence], tagset: TagSet, rows: WordRows) -> Split[Tagged]:
    """All sides as the model reads them; on that to be learned without texts that hold no tag to learn."""

    def side(sources: Sequence[SourceExamples[Sentence]], *, every: bool) -> list[SourceExamples[Tagged]]:
        found = []
        for source in sources:
            made = zip(source.examples, rows.place_all([each.words for each in source.examples]), strict=True)
            tagged = [Tagged(sentence.words, tagset.tags(sentence), row) for sentence, row in made]
            kept = [each for each in tagged if every or any(place is not None for place in each.row.places)]
            if not kept:
                raise UserError(f"{source.name}: the tokenizer leaves nothing of any word")
            found.append(SourceExamples(source.name, kept, source.weight))
        return found

    return Split(side(split.train, every=False), side(split.held_out, every=True), split.validated)


def _example(tagged: Tagged, tagset: TagSet, config: ModelConfig) -> HeadExample:
    ids = np.array(tagged.row.wrapped.ids, np.int32)
    target = np.full(len(ids), IGNORED, np.int64)
    for place, tag in zip(tagged.row.places, tagged.tags, strict=True):
        if place is not None:
            target[place] = tagset.labels.index(tag)
    types = tagged.row.wrapped.types
    return HeadExample(ids, np.array(types, np.int8) if config.segment_types and any(types) else None, target)


def _judged(results: Sequence[Tensor], examples: Sequence[Tagged], tagset: TagSet) -> Judged:
    found = [tags_of(each.row.places, result, tagset.labels) for each, result in zip(examples, results, strict=True)]
    right = [each.tags for each in examples]
    return Judged(
        tag_measures(found, right, tagset.entities),
        [told(each.words, tags, tagset.entities) for each, tags in zip(examples, found, strict=True)],
        [told(each.words, each.tags, tagset.entities) for each in examples],
    )


def _notes(split: Split[Sentence], placed: Split[Tagged], length: int) -> list[str]:
    """What was cut or left out."""
    rows = [each.row for each in [*placed.learned, *placed.tested]]
    cut = sum(row.num_cut for row in rows)
    empty = len(split.learned) - len(placed.learned)
    texts = f"{cut} words of {sum(row.num_cut > 0 for row in rows)} texts are beyond {length} tokens and are cut"
    return [
        *([texts] if cut else []),
        *([f"{empty} texts are left out: the tokenizer leaves nothing of their words"] if empty else []),
    ]
