"""How often each source comes, and that general text beside it is what nobody measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetuning.small_runs import base_model, recipe_for
from trivium.checkpoints.config_files import read_config
from trivium.data.corpus import standard_library_rows
from trivium.data.sources import PackedSource
from trivium.data.split import is_held_out
from trivium.errors import UserError
from trivium.finetuning import instruct
from trivium.finetuning.data_settings import FinetuneData
from trivium.finetuning.forgetting import HELD_OUT_FRACTION
from trivium.finetuning.mixing import NextTokenTask, Sized, mixed, replay_rows, row_weights
from trivium.finetuning.pieces import InstructPieces, InstructRows
from trivium.finetuning.prepared import SourceRows
from trivium.finetuning.rendering import Rendered
from trivium.finetuning.run import training_source
from trivium.progress import SILENT
from trivium.runtime import Runtime
from trivium.tokenizer.bpe import Tokenizer


def sized(name: str, examples: int, tokens: int, weight: float | None = None) -> Sized:
    """A source of so many examples of `tokens` tokens each, packed into rows of 64."""
    pieces = InstructPieces([Rendered([1] * tokens, [False] + [True] * (tokens - 1)) for _ in range(examples)])
    return Sized(name, InstructRows(pieces, 64, 0), examples, pieces.num_tokens, weight)


def settings(**changes: object) -> FinetuneData:
    return FinetuneData.model_validate({"train": ["a", "b"], **changes})


def example_shares(sources: list[SourceRows], rows: int = 1200) -> np.ndarray:
    """The share of each source among the examples that are drawn."""
    source = PackedSource(
        [(each.rows, each.weight) for each in sources], rows_per_step=rows, rows_per_micro_batch=1, seed=0
    )
    counts = np.zeros(len(sources))
    for place in source.row_ids(0):
        counts[place.source] += len(sources[place.source].rows.row(place.row))
    return counts / counts.sum()


SHORT_AND_LONG = [sized("short", 900, 9), sized("long", 100, 60)]  # eight a row, one a row


def test_without_weights_every_example_comes_equally_often() -> None:
    assert row_weights(SHORT_AND_LONG, settings()) is None
    assert example_shares(mixed(SHORT_AND_LONG, settings())) == pytest.approx([0.9, 0.1], abs=0.01)


def test_weights_count_examples_not_packed_rows() -> None:
    stated = [sized("short", 900, 9, weight=3.0), sized("long", 100, 60, weight=1.0)]
    assert example_shares(mixed(stated, settings())) == pytest.approx([0.75, 0.25], abs=0.01)
    rows = [SourceRows(each.name, each.rows, each.weight) for each in stated]  # control: weights of packed rows
    assert example_shares(rows)[0] > 0.9


def test_temperature_draws_small_sources_more_often() -> None:
    shares = example_shares(mixed(SHORT_AND_LONG, settings(temperature=2.0)))
    assert shares == pytest.approx([0.75, 0.25], abs=0.01), "30 to 10"
    assert example_shares(mixed(SHORT_AND_LONG, settings(temperature=1e6))) == pytest.approx([0.5, 0.5], abs=0.01)
    with pytest.raises(UserError, match=r"data\.temperature: weights are given"):
        row_weights([sized("a", 2, 9, 1.0), sized("b", 2, 9, 2.0)], settings(temperature=2.0))


def test_weights_of_tokens() -> None:
    stated = [sized("short", 900, 9, weight=1.0), sized("long", 100, 60, weight=1.0)]
    shares = example_shares(mixed(stated, settings(weigh_by="tokens")))
    assert shares * [9, 60] / (shares * [9, 60]).sum() == pytest.approx([0.5, 0.5], abs=0.01)


def test_next_tokens_of_a_text() -> None:
    ids = np.arange(5, 9)
    for before in ((), (1,)):
        task = NextTokenTask(before)
        example = task.example(ids, np.random.default_rng(0))
        assert example.targets.tolist() == ([5, 6, 7, 8] if before else [6, 7, 8])
        assert example.ids.tolist() == [*before, 5, 6, 7, 8][:-1]
        assert len(example.ids) == task.room(4).target


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_stated_share_of_rows_is_general_text_that_is_not_measured(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"line {n} of a text that goes on\n" for n in range(400))
    documents = {f"general {n}": text[n * 7 :] for n in range(30)}
    folder = tmp_path / "general"
    folder.mkdir()
    for name, content in documents.items():
        (folder / f"{name}.txt").write_text(content)
    recipe = recipe_for(tmp_path, "run", kind, data={"replay": {"paths": [str(folder)], "share": 0.25}})  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = base_model(tmp_path, kind)  # type: ignore[arg-type]
    task = instruct.prepare(recipe, Tokenizer.load(base), read_config(base)[1], SILENT)
    source = training_source(task, recipe, Runtime("cpu", "fp32"))
    drawn = [place.source for step in range(200) for place in source.row_ids(step)]
    assert np.mean([number == 1 for number in drawn]) == pytest.approx(0.25, abs=0.005)
    for batch in source.micro_batches(0):
        assert batch.ids.shape[1] <= 64 and batch.num_targets > 0


def test_replay_of_the_standard_library_leaves_out_what_the_ledger_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trivium.data import prepare as module

    rows = [row for row in standard_library_rows() if len(str(row.values["text"])) < 1500]
    every = {str(row.values["text"]) for row in rows}
    measured = {text for text in every if is_held_out(text, HELD_OUT_FRACTION)}
    assert 0 < len(measured) < len(every)
    monkeypatch.setattr(module, "standard_library_rows", lambda: iter(rows))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "cache_of", lambda _: tmp_path / "shards")
    base = base_model(tmp_path)
    recipe = recipe_for(tmp_path, "run", data={"replay": {"share": 0.25}})
    tokenizer = Tokenizer.load(base)
    (found,) = replay_rows(recipe, tokenizer, read_config(base)[1], 64)
    shards = found.pieces.shards  # type: ignore[attr-defined]
    texts = {tokenizer.decode(shards.document(n)[:-1].tolist()) for n in range(shards.num_documents)}
    assert texts == every - measured


def test_text_by_which_forgetting_is_measured_is_not_replayed(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    recipe = recipe_for(
        tmp_path,
        "run",
        data={"replay": {"paths": [str(folder / "a.txt")]}},
        forgetting={"paths": [str(folder)]},
    )
    base = base_model(tmp_path)
    with pytest.raises(UserError, match=r"data\.replay\.paths: .*a\.txt is also text by which forgetting is measured"):
        instruct.prepare(recipe, Tokenizer.load(base), read_config(base)[1], SILENT)
