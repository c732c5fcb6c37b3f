"""Instruction tuning as a whole: real files, the loss of `transformers`, what is generated, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.small_runs import base_model, recipe_for
from trivium.checkpoints.bundle import load
from trivium.checkpoints.config_files import read_config
from trivium.checkpoints.directory import save_model_directory
from trivium.checkpoints.resolve import resolve_model
from trivium.cli import main
from trivium.config import dump_recipe
from trivium.data.batch import IGNORED
from trivium.data.examples import collate_examples
from trivium.data.order import draw_of
from trivium.errors import UserError
from trivium.finetuning import instruct
from trivium.finetuning.inspecting import inspect, marked
from trivium.finetuning.pieces import InstructRows
from trivium.finetuning.prepared import PreparedTask
from trivium.finetuning.recipe import FinetuneRecipe
from trivium.finetuning.trained_model import tokenizer_and_config
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.progress import SILENT
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import EvaluationInterrupted


def prepared(recipe: FinetuneRecipe) -> PreparedTask:
    place = resolve_model(recipe.start_from)
    return instruct.prepare(recipe, Tokenizer.load(place), read_config(place)[1], SILENT)


def pieces_of(task: PreparedTask) -> Any:
    rows = task.train[0].rows
    assert isinstance(rows, InstructRows)
    return rows.pieces


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALPACA = "alpaca/alpaca_en_demo_part1.json"
REAL = [
    ALPACA,
    "alpaca/identity.json",
    "self-instruct/seed_tasks.jsonl",
    "dolly-hhrlhf/dolly_hhrlhf_part1.jsonl",
    "glaive-toolcall/glaive_toolcall_en_demo_part1.json",
    "sharegpt-demo/dummy_conversation.json",
    "kto-demo/kto_en_demo_part1.json",
]


@pytest.mark.parametrize("name", REAL)
def test_every_real_set_is_read_whole(shared_data: Path, tmp_path: Path, name: str) -> None:
    """No row is lost but answers marked as bad; and everything said is in the ids."""
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    recipe = recipe_for(tmp_path, "run", data={"train": [{"path": str(path), "max_rows": 150}], "sequence_length": 128})
    task = prepared(recipe.model_copy(update={"sample_prompts": ()}))
    assert task.facts is not None
    examples = task.facts["examples"] + task.facts["held_out_examples"]
    assert examples + task.facts["left_out"] > 1 and task.facts["left_out"] == 0
    pieces = pieces_of(task)
    assert all(any(pieces.rendered(number).learned) for number in range(len(pieces)))
    if name.startswith("kto"):
        assert any("are marked as bad" in note for note in task.notes)


def test_loss_and_gradient_are_those_of_transformers(shared_data: Path, tmp_path: Path) -> None:
    """Real rows, packed, against each row alone with what is not learned masked by -100."""
    from transformers import AutoModelForCausalLM

    tokenizer, _ = tokenizer_and_config("smollm2-135m-instruct")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, max_positions=512, mlp="gated",
        activation="silu", norm="rmsnorm", positions="rotary", tied_embeddings=True,
    )  # fmt: skip
    ours = build_model(config)
    initialise(ours, config, 0)
    save_model_directory(tmp_path / "model", ours, config, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").double()
    # Their padding learns nothing where it is read, though here it is also what ends every turn.
    theirs.get_input_embeddings().padding_idx = None
    ours = ours.double().eval()
    recipe = recipe_for(
        tmp_path,
        "run",
        start_from=str(tmp_path / "model"),
        data={"train": [{"path": str(shared_data / ALPACA), "max_rows": 60}], "sequence_length": 512},
    )
    task = prepared(recipe)
    pieces = pieces_of(task)
    numbers = sorted(range(len(pieces)), key=lambda number: len(pieces.rendered(number).ids))[10:13]
    batch = collate_examples([[pieces.example(number, draw_of(0)) for number in numbers]], tokenizer.pad_id or 0)
    report = task.objective.loss(ours, batch)
    report.sum.backward()
    total = torch.zeros((), dtype=torch.float64)
    for number in numbers:
        rendered = pieces.rendered(number)
        ids = torch.tensor([rendered.ids])
        labels = torch.where(torch.tensor([rendered.learned]), ids, IGNORED)
        assert (labels != IGNORED).any()
        total = total + theirs(input_ids=ids, labels=labels).loss * int((labels != IGNORED).sum())
    total.backward()
    assert float(report.sum.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    their = theirs.get_input_embeddings().weight.grad
    (mine,) = (each.grad for each in ours.parameters() if each.shape == their.shape)
    assert float((mine - their).norm() / their.norm()) < 1e-5
    # Control: with what was asked learned as well both are others.
    every = torch.zeros((), dtype=torch.float64)
    for number in numbers:
        ids = torch.tensor([pieces.rendered(number).ids])
        with torch.no_grad():
            every += theirs(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
    assert float(report.sum.detach()) < 0.9 * float(every)


def test_what_is_measured_and_shown(tmp_path: Path) -> None:
    recipe = recipe_for(
        tmp_path,
        "run",
        task={
            "name": "instruct",
            "generated_rows": 40,
            "max_new_tokens": 4,
            "scores": ["rouge", "bleu", "exact_match", "accuracy", "token_f1"],
        },
        sample_prompts=["add two and two"],
        sample_tokens=4,
    )
    task, model = prepared(recipe), load(recipe.start_from).model
    assert task.measure is not None
    found = task.measure(model, lambda: False, SILENT)
    names = {"rouge1", "rouge2", "rougeL", "bleu", "exact_match", "accuracy", "token_f1"}
    assert found.keys() == names and all(0 <= value <= 100 for value in found.values())
    samples = task.samples(model, SILENT)
    assert samples[-1]["prompt"] == "add two and two" and samples[-1]["truth"] == ""
    assert all(each["truth"].startswith("the sum is") for each in samples[:-1]) and len(samples) == 6
    with pytest.raises(EvaluationInterrupted):
        task.measure(model, lambda: True, SILENT)


def test_scores_of_answers_that_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.finetuning import written as module

    task = prepared(recipe_for(tmp_path, "run", task={"name": "instruct", "scores": ["exact_match", "rouge"]}))
    assert task.measure is not None
    right = {tuple(question.prompt): question.answer for question in task.measure.__self__.measured}  # type: ignore[attr-defined]

    class Said:
        def __init__(self, text: str) -> None:
            self.text = text

    def answer(model: Any, tokenizer: Any, prompts: list[list[int]], *_: Any, **__: Any) -> list[Said]:
        return [Said(right[tuple(prompt)]) for prompt in prompts]

    model = load(base_model(tmp_path)).model
    monkeypatch.setattr(module, "generate", answer)
    assert task.measure(model, lambda: False, SILENT) == {"exact_match": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1}
    right = dict.fromkeys(right, "no")  # control
    assert set(task.measure(model, lambda: False, SILENT).values()) == {0}


def test_equal_questions_are_on_one_side_whatever_they_are_answered(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n % 50}", "response": f"answer {n}"} for n in range(200)]
    recipe = recipe_for(tmp_path, "run", data={"train": [str(written(tmp_path / "a.jsonl", rows))]})
    task, tokenizer = prepared(recipe), Tokenizer.load(recipe.start_from)
    held_out = task.held_out["a"]
    assert isinstance(held_out, InstructRows)
    asked = [
        {
            tokenizer.decode([t for t, learned in zip(each.ids, each.learned, strict=True) if not learned])
            for each in map(pieces.rendered, range(len(pieces)))
        }
        for pieces in (pieces_of(task), held_out.pieces)
    ]
    assert asked[0] and asked[1] and not asked[0] & asked[1] and len(asked[0] | asked[1]) == 50


def test_rows_without_anything_to_learn_are_left_out_and_said(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": f"only {n}"}]} for n in range(30)]
    rows += [{"messages": [*row["messages"], {"role": "assistant", "content": "yes"}]} for row in rows]
    path = written(tmp_path / "a.jsonl", rows)
    task = prepared(recipe_for(tmp_path, "run", data={"train": [str(path)], "held_out_fraction": 0.0}))
    assert task.facts is not None and (task.facts["examples"], task.facts["left_out"]) == (30, 30)
    assert any(note.startswith("30 rows are left out, since nothing in them is learned: ") for note in task.notes)
    assert any("row 1" in note and "and 27 more" in note for note in task.notes)
    alone = written(tmp_path / "b.jsonl", rows[:30])
    with pytest.raises(UserError, match="b: nothing is learned of any row"):
        prepared(recipe_for(tmp_path, "run", data={"train": [str(alone)]}))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"text": "a", "label": 1}, r"a\.jsonl, row 1: is a text with a label, .* use task=classify"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        r"a\.jsonl, row 1: is a pair of .*\{response: chosen\}",
    ),
    ({"quetsion": "a"}, r"a\.jsonl, row 1: the keys 'quetsion' make no known kind"),
    (
        {"messages": [{"role": "user", "content": "a", "train": True}, {"role": "assistant", "content": "b"}]},
        r"a\.jsonl, row 1: message 1: \"train\" is true, but only messages of the assistant are learned",
    ),
]


@pytest.mark.parametrize(("row", "message"), MISTAKES)
def test_mistakes_name_file_row_and_cure(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=message):
        prepared(recipe_for(tmp_path, "run", data={"train": [str(path)], "held_out_fraction": 0.0}))


def test_a_chosen_answer_can_be_learned_by_naming_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    source = {"path": str(path), "columns": {"response": "chosen"}}
    task = prepared(recipe_for(tmp_path, "run", data={"train": [source], "held_out_fraction": 0.0}))
    assert task.facts is not None and task.facts["examples"] == 1


def test_models_that_do_not_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an encoder, which reads a text whole and writes none"):
        prepared(recipe_for(tmp_path, "run", "encoder"))
    with pytest.raises(UserError, match=r"task\.learn=all is for decoders"):
        prepared(recipe_for(tmp_path, "run", "encoder-decoder", task={"name": "instruct", "learn": "all"}))


def test_chatml_is_installed_where_conversations_are_and_saved_only_then(tmp_path: Path) -> None:
    place = base_model(tmp_path)
    tokenizer, config = Tokenizer.load(place).with_chat_template(None), read_config(place)[1]
    plain = instruct.prepare(recipe_for(tmp_path, "run"), tokenizer, config, SILENT)
    assert plain.chat_template is None
    talk = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "b"}]} for n in range(9)
    ]
    path = written(tmp_path / "a.jsonl", talk)
    recipe = recipe_for(tmp_path, "run", data={"train": [str(path)], "held_out_fraction": 0.0})
    chat = instruct.prepare(recipe, tokenizer, config, SILENT)
    assert chat.chat_template is not None
    saved = tokenizer.with_chat_template(chat.chat_template).chat
    assert saved is not None
    prompt = saved.encode(talk[0]["messages"][:1], add_generation_prompt=True).ids  # type: ignore[index]
    assert pieces_of(chat).rendered(0).ids[: len(prompt)] == prompt, "what is served is what was learned"


def test_a_template_of_the_recipe(tmp_path: Path) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (tmp_path / "a.jinja").write_text(source)
    task = prepared(recipe_for(tmp_path, "run", task={"name": "instruct", "chat_template": str(tmp_path / "a.jinja")}))
    assert task.chat_template == source
    text = Tokenizer.load(base_model(tmp_path)).decode(pieces_of(task).rendered(0).ids)
    assert "<user>add" in text and "<assistant>the sum" in text
    with pytest.raises(UserError, match=r"task\.chat_template: .*no\.jinja cannot be read"):
        prepared(recipe_for(tmp_path, "run", task={"name": "instruct", "chat_template": str(tmp_path / "no.jinja")}))


# -------------------------------------------------------------------------------------------------- inspect


def test_inspect_marks_what_is_learned(tmp_path: Path) -> None:
    found = inspect(recipe_for(tmp_path, "run"), 2)
    for row in found.rows:
        text = marked(row)
        assert text.count("[[the sum is") == 1 and text.rstrip().endswith("]]")
        assert sum(row.learned) == row.num_learned > 0 and "sums.jsonl, row " in text
    assert len(found.rows) == 2 and found.dropped == []
    with pytest.raises(UserError, match="--source sum: did you mean sums"):
        inspect(recipe_for(tmp_path, "run"), source="sum")


def test_inspect_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "only"}]}]
    rows += [{"prompt": f"a {n}", "response": "b"} for n in range(9)]
    recipe = recipe_for(
        tmp_path, "run", data={"train": [str(written(tmp_path / "a.jsonl", rows))], "held_out_fraction": 0.0}
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert main(["inspect", str(path), "--rows", "1", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dropped"][0]["where"].endswith("row 1") and said["facts"]["examples"] == 9
    (row,) = said["rows"]
    assert {"source", "where", "ids", "learned", "text", "num_learned"} <= row.keys()
    assert main(["inspect", str(path), "--rows", "1", "--quiet"]) == 0
    assert "[[b" in capsys.readouterr().out
    path.write_text("run: a\nstage: pretrain\n")
    assert main(["inspect", str(path)]) == 2
    assert "its stage is pretrain" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["encoder-decoder"])
def test_inspect_shows_both_sides_of_an_encoder_decoder(tmp_path: Path, kind: Any) -> None:
    (row,) = inspect(recipe_for(tmp_path, "run", kind), 1).rows
    assert row.reads is not None and row.reads.startswith("add") and "writes: [[the sum" in marked(row)
