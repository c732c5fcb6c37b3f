"""A pretrained encoder becomes a classifier: padding changes nothing, and what can be learned is learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trivium.checkpoints.bundle import load
from trivium.checkpoints.directory import save_model_directory
from trivium.data.sources import PackedSource
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.finetuning.classification import ClassificationObjective
from trivium.finetuning.classifier import LabelledText, labelled_rows, train_classifier
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.runtime import Runtime
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.settings import TrainingSettings

ANIMALS, TOOLS = ["cat", "dog", "horse", "cow", "sheep"], ["hammer", "saw", "drill", "nail", "axe"]


def texts(count: int, salt: int = 0) -> list[LabelledText]:
    """Sentences of unequal length about animals (0) or tools (1)."""
    found = []
    for number in range(count):
        label = number % 2
        word = (TOOLS if label else ANIMALS)[(number // 2 + salt) % 5]
        found.append(LabelledText(f"{'so ' * (number % 7)}here is one {word} and no more", label))
    return found


@pytest.fixture(scope="module", params=["bert", "llama", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh model of each kind with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("base") / "model"
    family = FAMILIES[request.param]
    tokenizer = Tokenizer.train(texts=[each.text for each in texts(40)], vocab_size=400, kind=family.kind)
    sizes = {"vocab_size": tokenizer.vocab_size, "width": 32, "layers": 2, "heads": 2, "max_positions": 64}
    config = ModelConfig(**{**family.shape, "kind": family.kind, **sizes})
    model = build_model(config)
    initialise(model, config, 0)
    save_model_directory(folder, model, config, tokenizer)
    return folder


def step_gradient(base: Path, rows_per_micro_batch: int) -> torch.Tensor:
    """The gradient of one step of 8 texts, in fp64, with the mean taken once."""
    bundle = load(base, head="classification", labels=("animal", "tool"))
    model = bundle.model.double()
    rows = labelled_rows(texts(8), bundle.tokenizer, bundle.config, 64)
    source = PackedSource([(rows, None)], rows_per_step=8, rows_per_micro_batch=rows_per_micro_batch, seed=0)
    total = 0
    for batch in source.micro_batches(0):
        report = ClassificationObjective().loss(model, batch)
        report.sum.backward()
        total += report.count
    assert total == 8
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / total


def test_micro_batches_and_padding_change_nothing(base: Path) -> None:
    whole = step_gradient(base, 8)
    for size in (1, 3):
        assert (step_gradient(base, size) - whole).norm() <= 1e-12 * whole.norm()


def accuracy_of_run(base: Path, run: Path, train_on: Sequence[LabelledText]) -> float:
    result = train_classifier(
        base,
        ("animal", "tool"),
        train_on,
        texts(20, salt=2),
        run,
        TrainingSettings(steps=60, learning_rate=3e-3, weight_decay=0.0),
        Runtime(),
        rows_per_step=8,
    )
    return result.accuracy


def test_learns_what_can_be_learned_and_is_an_ordinary_directory(base: Path, tmp_path: Path) -> None:
    assert accuracy_of_run(base, tmp_path / "run", texts(40)) == 1.0
    bundle = load(tmp_path / "run" / "model")
    assert bundle.config.labels == ("animal", "tool")
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    if bundle.config.kind == "encoder":
        ids = torch.tensor([bundle.tokenizer.wrap(bundle.tokenizer.encode("here is one saw"))[0]])
        with torch.no_grad():
            assert torch.allclose(theirs(ids).logits, bundle.model(ids), atol=1e-5)
    assert bundle.classify("here is one saw and no more").label == "tool"


def test_broken_control_wrong_labels_are_seen(base: Path, tmp_path: Path) -> None:
    wrong = [LabelledText(each.text, 1 - each.label) for each in texts(40)]
    assert accuracy_of_run(base, tmp_path / "run", wrong) <= 0.1


def test_what_cannot_be_learned_is_refused(base: Path, tmp_path: Path) -> None:
    bundle = load(base, head="classification", labels=("animal", "tool"))
    with pytest.raises(UserError, match="no labelled texts"):
        labelled_rows([], bundle.tokenizer, bundle.config, 64)
    with pytest.raises(UserError, match="labelled text 1 is of class 2: there are 2"):
        labelled_rows([LabelledText("a", 2)], bundle.tokenizer, bundle.config, 64)
    with pytest.raises(UserError, match="has no room for a text"):
        labelled_rows(texts(2), bundle.tokenizer, bundle.config, 0)
    for labels in (("a",), ("a", "a")):
        with pytest.raises(UserError, match="give two or more, each once"):
            train_classifier(base, labels, texts(2), texts(2), tmp_path, TrainingSettings(steps=1), Runtime())
