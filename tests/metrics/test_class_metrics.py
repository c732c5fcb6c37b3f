"""Classes, numbers and entities against their references: the definitions by brute force, and cases counted by hand."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from trivium.metrics import classification as exported
from trivium.metrics.classification import (
    accuracy,
    class_scores,
    classification,
    f1_macro,
    f1_micro,
    f1_weighted,
    majority_share,
    matthews_correlation,
)
from trivium.metrics.entities import Entity, as_bio, bio_of, entities_of, entity_scores, names_entities
from trivium.metrics.regression import pearson, ranks, rmse, spearman


def drawn(seed: int, classes: str, size: int = 60) -> tuple[list[str], list[str]]:
    """Predictions that are right about half the time, and references."""
    draw = random.Random(seed)
    right = [draw.choice(classes) for _ in range(size)]
    return [r if draw.random() < 0.5 else draw.choice(classes) for r in right], right


def counted_f1(predictions: list[str], references: list[str], name: str) -> float:
    """From precision and recall, by going through all pairs."""
    tp = sum(p == name == r for p, r in zip(predictions, references, strict=True))
    precision, recall = tp / max(1, predictions.count(name)), tp / max(1, references.count(name))
    return 2 * precision * recall / (precision + recall) if tp else 0.0


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_f1_and_its_means_are_those_of_the_definition(classes: str) -> None:
    said, right = drawn(1, classes)
    f1 = {name: counted_f1(said, right, name) for name in classes}
    assert {name: score.f1 for name, score in class_scores(said, right).items()} == pytest.approx(f1)
    assert f1_macro(said, right) == pytest.approx(statistics.mean(f1.values()))
    assert f1_weighted(said, right) == pytest.approx(sum(f1[name] * right.count(name) for name in classes) / len(right))
    assert accuracy(said, right) == f1_micro(said, right) == sum(map(str.__eq__, said, right)) / len(right)
    assert majority_share(right) == max(map(right.count, classes)) / len(right)
    assert f1_macro(said, right) != pytest.approx(f1_weighted(said, right), abs=1e-4)  # the two can be told apart


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_matthews_is_the_correlation_of_the_indicators(classes: str) -> None:
    """R_K as Gorodkin defines it: covariances of indicator columns, added over classes."""

    def covariance(x: list[str], y: list[str]) -> float:
        n = len(x)
        total = 0.0
        for name in classes:
            mean_x, mean_y = x.count(name) / n, y.count(name) / n
            total += sum(((a == name) - mean_x) * ((b == name) - mean_y) for a, b in zip(x, y, strict=True))
        return total

    said, right = drawn(2, classes)
    expected = covariance(said, right) / math.sqrt(covariance(said, said) * covariance(right, right))
    assert matthews_correlation(said, right) == pytest.approx(expected)
    assert matthews_correlation(right, right) == pytest.approx(1)


def test_matthews_of_two_classes_by_hand() -> None:
    said, right = "1110001100", "1100011100"  # tp 4, tn 4, fp 1, fn 1
    assert matthews_correlation(said, right) == pytest.approx((4 * 4 - 1 * 1) / math.sqrt(5 * 5 * 5 * 5))
    assert matthews_correlation("1" * 10, right) == 0.0


def test_all_at_once_counts_a_class_that_is_only_predicted() -> None:
    found = classification(["a", "b", "c", "a"], ["a", "b", "b", "a"])
    assert exported is classification
    assert found["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == found["f1_micro"] == 0.75
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        classification(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="nothing to score"):
        classification([], [])


def test_correlations_against_the_standard_library() -> None:
    draw = random.Random(3)
    x = [draw.gauss(0, 1) for _ in range(50)]
    y = [a + draw.gauss(0, 1) for a in x]
    assert pearson(x, y) == pytest.approx(statistics.correlation(x, y))
    assert rmse([1.0, 2.0], [4.0, 6.0]) == pytest.approx(math.sqrt((9 + 16) / 2))
    tied = [round(value) for value in y]
    assert ranks([10, 20, 10, 30]) == [1.5, 3, 1.5, 4]
    by_hand = [statistics.mean([1 + sum(o < v for o in tied), sum(o <= v for o in tied)]) for v in tied]
    assert ranks(tied) == by_hand
    assert spearman(x, tied) == pytest.approx(statistics.correlation(ranks(x), by_hand))
    assert spearman(x, [math.exp(value) for value in x]) == pytest.approx(1)  # any rising function
    assert pearson(x, [math.exp(value) for value in x]) < 0.95
    assert pearson([0.1] * 7, y[:7]) == spearman([0.1] * 7, y[:7]) == 0.0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", [Entity(1, 3, "PER"), Entity(4, 5, "LOC")]),
        ("B-PER B-PER I-PER", [Entity(0, 1, "PER"), Entity(1, 3, "PER")]),
        ("I-PER I-PER B-PER O", [Entity(0, 2, "PER"), Entity(2, 3, "PER")]),  # IOB1: B only where two touch
        ("B-PER I-LOC I-LOC", [Entity(0, 1, "PER"), Entity(1, 3, "LOC")]),
        ("S-PER B-LOC I-LOC E-LOC I-LOC", [Entity(0, 1, "PER"), Entity(1, 4, "LOC"), Entity(4, 5, "LOC")]),
        ("U-PER B-LOC L-LOC O", [Entity(0, 1, "PER"), Entity(1, 3, "LOC")]),
        ("O O", []),
    ],
)
def test_entities_of_each_scheme_by_hand(tags: str, expected: list[Entity]) -> None:
    assert entities_of(tags.split()) == expected
    assert entities_of(as_bio(tags.split())) == expected


def test_every_short_row_of_tags_keeps_its_entities_as_bio() -> None:
    marks = ["O", "B-X", "I-X", "I-Y", "E-X", "S-Y"]
    for tags in itertools.product(marks, repeat=4):
        entities, as_tags = entities_of(tags), as_bio(tags)
        assert entities_of(as_tags) == entities
        assert as_tags == bio_of(entities, 4)
        assert all(tag[0] in "OBI" for tag in as_tags)


def test_entity_scores_by_hand() -> None:
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    said = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "O"]]  # a border wrong, one right, a type wrong
    scores = entity_scores(said, right)
    assert (scores.overall.precision, scores.overall.recall, scores.overall.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert {name: score.f1 for name, score in scores.per_type.items()} == pytest.approx(
        {"PER": 0.0, "LOC": 2 / 3, "ORG": 0.0}
    )
    assert scores.to_json()["LOC"]["support"] == 1
    assert names_entities({"O", "B-PER"}) and not names_entities({"O"}) and not names_entities({"B-PER", "NN"})
    with pytest.raises(ValueError, match="text 0 has 1 predicted tags and 2 right ones"):
        entity_scores([["O"]], [["O", "O"]])


@pytest.mark.long
def test_entity_scores_are_those_of_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    draw = random.Random(4)
    marks = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    right, said = ([[draw.choice(marks) for _ in range(12)] for _ in range(200)] for _ in range(2))
    assert entity_scores(said, right).overall.f1 == pytest.approx(seqeval.f1_score(right, said))
