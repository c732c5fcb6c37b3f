"""The four objectives of heads: neither padding, nor the order of rows, nor the size of micro-batches changes them, and
they are those of `transformers`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetuning.head_models import TASKS, loss_and_gradient, model_for, rows_for
from trivium.checkpoints.directory import save_model_directory
from trivium.data.batch import IGNORED, Batch
from trivium.families import FAMILIES
from trivium.finetuning.head_rows import head_result
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer

CASES = [(name, task) for task in TASKS for name in ("bert", "llama", "t5") if (name, task) != ("llama", "answer")]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_padding_order_and_micro_batches_change_nothing(name: str, task: str) -> None:
    model, rows = model_for(name, task), rows_for(name, task)
    every = [rows.row(number) for number in range(len(rows))]
    loss, count, gradient = loss_and_gradient(model, task, [rows.collate(every)])
    assert gradient.norm() > 0.1
    others = {
        "one by one": [rows.collate([row]) for row in every],
        "threes": [rows.collate(every[start : start + 3]) for start in range(0, 8, 3)],
        "backwards": [rows.collate(every[::-1])],
        "padded wide": [rows.worst_case([row]) for row in every],
    }
    for what, batches in others.items():
        other, other_count, other_gradient = loss_and_gradient(model, task, batches)
        assert other_count == count, what
        assert other == pytest.approx(loss, rel=1e-12), what
        assert (other_gradient - gradient).norm() <= 1e-12 * gradient.norm(), what
    if (name, task) == ("llama", "tag"):
        return  # a decoder never reads padding, which stands behind its text
    # the broken control: padding that is read like text
    unmarked = [replace(batch, segments=None, source_segments=None) for batch in others["padded wide"]]
    wrong, _, wrong_gradient = loss_and_gradient(model, task, unmarked)
    assert abs(wrong - loss) > 1e-6 * loss and (wrong_gradient - gradient).norm() > 1e-6 * gradient.norm()


def test_counts_are_what_is_divided_by() -> None:
    """Rows, rows, words, two ends a row."""
    for task, expected in (("classify", 8), ("regress", 8), ("answer", 16)):
        rows = rows_for("bert", task)
        batch = rows.collate([rows.row(number) for number in range(8)])
        assert TASKS[task][0].loss(model_for("bert", task), batch).count == expected
    rows = rows_for("bert", "tag")
    batch = rows.collate([rows.row(number) for number in range(8)])
    report = TASKS["tag"][0].loss(model_for("bert", "tag"), batch)
    assert report.count == int((batch.targets != IGNORED).sum()) < int((batch.segments > 0).sum())
    assert 0 <= int(report.scalars["correct"]) <= report.count


def test_packed_rows_are_refused() -> None:
    batch = Batch(torch.ones(1, 4, dtype=torch.int64), torch.zeros(1), segments=torch.tensor([[1, 1, 2, 2]]))
    with pytest.raises(ValueError, match="these are packed"):
        head_result(model_for("bert", "classify"), batch)


# ------------------------------------------------------------------------------------------------ transformers

THEIRS = {
    "classify": "AutoModelForSequenceClassification",
    "regress": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "answer": "AutoModelForQuestionAnswering",
}


def _saved_model(folder: Path, task: str):
    """A tiny BERT with the task's head, in fp64, with weights that matter; its directory is written as fp32."""
    _, head, labels = TASKS[task]
    family = FAMILIES["bert"]
    sizes = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "max_positions": 32, "vocab_size": 400}
    config = family.with_head(ModelConfig(**{**family.shape, "kind": "encoder", **sizes}), head, labels)
    model = build_model(config.changed(dropout=0.0))
    initialise(model, config, 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    tokenizer = Tokenizer.train(texts=["a few words of a text"] * 3, vocab_size=400, kind="encoder")
    save_model_directory(folder, model, config, tokenizer, family="bert")
    return model, config, tokenizer


@pytest.mark.parametrize("task", list(TASKS))
def test_loss_and_gradient_are_those_of_transformers(task: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, config, tokenizer = _saved_model(tmp_path / "weights", task)
    # their softmax over positions goes over padding as well: answers are compared where there is none
    lengths = (7,) * 6 if task == "answer" else (3, 9, 4, 7, 5, 9)
    rows = rows_for("bert", task, lengths)
    batch = rows.collate([rows.row(number) for number in range(6)])
    objective = TASKS[task][0]
    report = objective.loss(model.train(), batch)
    (report.sum / report.count).backward()

    theirs = getattr(transformers, THEIRS[task]).from_pretrained(tmp_path / "weights", attn_implementation="eager")
    told = {"labels": batch.targets}
    if task == "answer":
        told = {"start_positions": batch.targets[:, 0], "end_positions": batch.targets[:, 1]}
    output = theirs.eval()(batch.ids, attention_mask=(batch.segments > 0).long(), token_type_ids=batch.types, **told)
    output.loss.backward()
    assert float(report.sum.detach()) / report.count == pytest.approx(float(output.loss.detach()), rel=1e-5)
    assert int(report.count) == {"classify": 6, "regress": 6, "tag": batch.num_targets, "answer": 12}[task]

    # the gradient, written as if it were weights, has their names
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    save_model_directory(tmp_path / "gradient", model, config, tokenizer, family="bert")
    ours = load_file(tmp_path / "gradient" / "model.safetensors")
    compared = 0
    for name, weight in theirs.named_parameters():
        if weight.grad is None:
            continue
        assert (ours[name] - weight.grad).norm() <= 1e-5 * max(1e-2, float(weight.grad.norm())), name
        compared += float(weight.grad.norm()) > 1e-4
    assert compared > 25
    head = next(name for name in ours if name.startswith(("classifier.", "qa_outputs.")) and name.endswith("weight"))
    assert ours[head].norm() > 1e-3
