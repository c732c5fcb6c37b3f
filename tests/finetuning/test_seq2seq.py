"""Texts turned into others: by two stacks and by one, from rows and from parallel texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from finetuning.small_runs import base_model, recipe_for
from trivium.checkpoints.bundle import load
from trivium.checkpoints.config_files import read_config
from trivium.data.order import draw_of
from trivium.errors import UserError
from trivium.finetuning import seq2seq
from trivium.finetuning.pieces import InstructRows
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.generation.prompts import encode_source
from trivium.models.config import Kind
from trivium.progress import SILENT
from trivium.tokenizer.bpe import Tokenizer

ROWS = [{"source": f"add {n} and one", "target": f"{n + 1}"} for n in range(60)]


def prepared(recipe: FinetuneRecipe) -> PreparedTask:
    place = Path(recipe.start_from)
    return seq2seq.prepare(recipe, Tokenizer.load(place), read_config(place)[1], SILENT)


def recipe(folder: Path, kind: Kind, rows: list[dict[str, Any]], data: Any = None, **task: Any) -> FinetuneRecipe:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe_for(
        folder,
        "run",
        kind,
        task={"name": "seq2seq", "max_new_tokens": 4, "generated_rows": 6, **task},
        data={"train": [str(path)], **(data or {})},
    )


def pieces_of(task: PreparedTask) -> Any:
    rows = task.train[0].rows
    assert isinstance(rows, InstructRows)
    return rows.pieces


@pytest.mark.parametrize("keys", [("source", "target"), ("input", "target"), ("prompt", "response")])
def test_an_encoder_decoder_reads_the_source_and_writes_the_target(tmp_path: Path, keys: tuple[str, str]) -> None:
    rows = [dict(zip(keys, row.values(), strict=True)) for row in ROWS]
    task = prepared(recipe(tmp_path, "encoder-decoder", rows, instruction="sum: "))
    tokenizer, example = Tokenizer.load(base_model(tmp_path, "encoder-decoder")), pieces_of(task).example(0, draw_of(0))
    place = int(pieces_of(task).wheres[0].rsplit(" ", 1)[-1]) - 1
    assert example.source.tolist() == encode_source(tokenizer, f"sum: {ROWS[place]['source']}"), "as it is served"
    target = [*tokenizer.encode(ROWS[place]["target"]), tokenizer.eos_id]
    assert example.targets.tolist() == target
    assert example.ids.tolist() == [tokenizer.pad_id, *target[:-1]]


def test_a_decoder_is_asked_the_source(tmp_path: Path) -> None:
    task = prepared(recipe(tmp_path, "decoder", ROWS, instruction="sum: "))
    tokenizer, rendered = Tokenizer.load(base_model(tmp_path)), pieces_of(task).rendered(0)
    learned = [token for token, each in zip(rendered.ids, rendered.learned, strict=True) if each]
    assert "<|im_start|>user\nsum: add" in tokenizer.decode(rendered.ids)
    assert tokenizer.decode(learned).endswith("<|im_end|>")


def test_loss_with_label_smoothing_is_that_of_torch(tmp_path: Path) -> None:
    task = prepared(recipe(tmp_path, "encoder-decoder", ROWS, label_smoothing=0.1, data={"packing": False}))
    model = load(base_model(tmp_path, "encoder-decoder")).model.double().eval()
    rows = task.train[0].rows
    batch = rows.collate([rows.row(number) for number in range(5)])
    with torch.no_grad():
        report = task.objective.loss(model, batch)
        total = torch.zeros((), dtype=torch.float64)
        plain = torch.zeros((), dtype=torch.float64)
        for number in range(5):
            example = pieces_of(task).example(number, draw_of(0))
            ids, source, targets = (
                torch.from_numpy(each)[None] for each in (example.ids, example.source, example.targets)
            )
            logits = model(source, ids)[0]
            total += F.cross_entropy(logits, targets[0], reduction="sum", label_smoothing=0.1)
            plain += F.cross_entropy(logits, targets[0], reduction="sum")
    assert float(report.sum) == pytest.approx(float(total), rel=1e-6)
    assert float(report.sum) != pytest.approx(float(plain), rel=1e-3)


def test_parallel_texts(tmp_path: Path) -> None:
    for ending, words in (("en", "one two"), ("de", "eins zwei")):
        (tmp_path / f"text.{ending}").write_text("".join(f"{words} {n}\n" for n in range(40)))
    task = prepared(
        recipe(tmp_path, "encoder-decoder", ROWS, languages=("en", "de"), data={"train": [str(tmp_path / "text")]})
    )
    tokenizer, found = Tokenizer.load(base_model(tmp_path, "encoder-decoder")), pieces_of(task).rendered(0)
    assert tokenizer.decode(found.source).startswith("one two") and tokenizer.decode(found.ids).startswith("eins zwei")
    assert task.facts is not None and task.facts["examples"] + task.facts["held_out_examples"] == 40


def test_what_is_measured_and_shown(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, "encoder-decoder", ROWS, num_beams=2)
    task, model = prepared(wanted), load(wanted.start_from).model
    assert task.measure is not None
    assert task.measure(model, lambda: False, SILENT).keys() == {"rouge1", "rouge2", "rougeL", "bleu"}
    assert all(each["prompt"].startswith("add") and each["truth"] for each in task.samples(model, SILENT))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a", "target": " "}, r"row 1: the target is empty"),
        ({"source": "", "target": "b"}, r"row 1: the source is empty"),
        ({"text": "a"}, r"row 1: is no pair of a source and a target \(its keys: 'text'\)"),
    ],
)
def test_mistakes(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(recipe(tmp_path, "encoder-decoder", [row]))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an encoder, which reads a text whole and writes none"):
        prepared(recipe(tmp_path, "encoder", ROWS))
