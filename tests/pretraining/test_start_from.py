"""A run that begins with another model: its weights, shape and tokenizer are used; what cannot be is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining.small_runs import as_left_at
from pretraining.test_run import same_runs
from trivium.checkpoints.directory import load_model_directory, save_model_directory
from trivium.cli.output import run_table
from trivium.config import build_settings, dump_recipe, load_recipe
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig
from trivium.pretraining.material import prepare_material
from trivium.pretraining.recipe import PretrainRecipe
from trivium.pretraining.run import pretrain, resume
from trivium.progress import SILENT, TerminalProgress
from trivium.runtime import choose_runtime
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import evaluate_loss
from trivium.training.log import read_log
from trivium.training.token_objective import TokenObjective

WORDS = ("red", "green", "blue", "old", "new", "warm", "cold", "big")
ROWS = [(f"the {a} house has a {b} door", f"a {b} door, the {a} house") for a in WORDS for b in WORDS]
# So small that a step changes no figure: what is measured after it is the model that the run began with.
STILL = {"learning_rate": 1e-30, "weight_decay": 0.0, "warmup_steps": 0}


def values_of(folder: Path, run: str, **changes: Any) -> dict[str, Any]:
    training = {"steps": 4, "save_every_steps": 2, "keep_checkpoints": 9, **changes.pop("training", {})}
    data = {
        "sequence_length": 48,
        "rows_per_step": 4,
        "held_out_fraction": 0.1,
        "cache_directory": str(folder / "cache"),
        **changes.pop("data", {}),
    }
    return {
        "run": str(folder / run),
        "device": "cpu",
        "threads": 1,
        "sample_tokens": 4,
        "data": data,
        "training": training,
        **changes,
    }


def further(folder: Path, run: str, **changes: Any) -> PretrainRecipe:
    """A run of pairs that begins with the spans model."""
    values = {"start_from": str(folder / "spans"), "objective": "pairs", **changes}
    data = {"train": [str(folder / "pairs.jsonl")], **values.pop("data", {})}
    return build_settings(PretrainRecipe, values_of(folder, run, **values, data=data), "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `spans`, the run of an encoder-decoder with learned positions, and `pairs.jsonl`."""
    path = tmp_path_factory.mktemp("start")
    (path / "text.txt").write_text("\n".join(source for source, _ in ROWS * 4) + "\n")
    rows = [json.dumps({"source": source, "target": target}) for source, target in ROWS]
    (path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    shape = {"family": "bart", "width": 32, "layers": 1, "heads": 2}
    data = {"train": [str(path / "text.txt")], "held_out_by": "tail"}
    values = values_of(path, "spans", tokenizer={"vocab_size": 420}, model=shape, objective="spans", data=data)
    pretrain(build_settings(PretrainRecipe, values, "test"))
    return path


def held_out_loss(model: Model, recipe: PretrainRecipe, tokenizer: Tokenizer) -> float:
    runtime = choose_runtime("cpu", "fp32", recipe.seed, 1)
    rows = prepare_material(recipe, tokenizer, SILENT).evaluation_rows(runtime)
    assert rows is not None
    return evaluate_loss(model, TokenObjective(accuracy=True), rows, runtime).loss


def test_the_run_begins_with_the_weights_the_shape_and_the_tokenizer_of_the_model(folder: Path) -> None:
    recipe = further(folder, "still", training={**STILL, "steps": 1})
    pretrain(recipe)
    began, tokenizer, config = load_model_directory(folder / "spans" / "model")
    ended, same_tokenizer, same_config = load_model_directory(folder / "still" / "model")
    assert recipe.model == config == same_config and same_tokenizer.fingerprint == tokenizer.fingerprint
    (told,) = [
        line["held_out_loss"] for line in read_log(folder / "still" / "metrics.jsonl") if "held_out_loss" in line
    ]
    assert told == pytest.approx(held_out_loss(began, recipe, tokenizer), rel=1e-6)
    weights = ended.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in began.state_dict().items())
    fresh = build_model(config)
    initialise(fresh, config, recipe.seed)
    assert abs(told - held_out_loss(fresh, recipe, tokenizer)) > 1e-3, "control: fresh weights would be noticed"
    assert not (folder / "still" / "tokenizer").exists(), "nothing was learned anew"


def test_it_resumes_bit_for_bit_from_the_saved_recipe(folder: Path) -> None:
    recipe = further(folder, "calm")
    (folder / "saved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(PretrainRecipe, folder / "saved.yaml") == recipe
    pretrain(recipe)
    run = as_left_at(folder / "calm", folder / "again", 2)
    resume(run)
    assert same_runs(folder / "calm", run) == []


def test_the_tokenizer_may_be_named_and_another_is_refused(folder: Path) -> None:
    own = further(folder, "named", tokenizer={"path": str(folder / "spans" / "tokenizer")}, training={"steps": 1})
    assert pretrain(own)["steps"] == 1
    texts = [target.upper() for _, target in ROWS]
    Tokenizer.train(texts=texts, vocab_size=420, kind="encoder-decoder").save(folder / "other")
    with pytest.raises(UserError, match=r"tokenizer\.path=.*other is another tokenizer than that of .*: leave it out$"):
        pretrain(further(folder, "refused", tokenizer={"path": str(folder / "other")}))
    assert not (folder / "refused").exists()


def test_what_a_run_does_is_said_in_words(folder: Path) -> None:
    said = io.StringIO()
    scored = {"name": "pairs", "generate_and_score": "bleu", "validation_pairs_to_generate": 1}
    recipe = further(folder, "said", objective=scored, training={"steps": 1})
    summary = pretrain(recipe, progress=TerminalProgress(said))
    lines = said.getvalue().splitlines()
    for work in ("writing held-out targets (greedy)", "writing held-out targets (beam search)", "writing samples"):
        assert f"{work} ..." in lines, said.getvalue()
    assert any(line.startswith("writing held-out targets (greedy): 1 text, ") for line in lines)
    assert re.match(r"planned memory: \d\S* [kMG]B \(.*\); \d\S* [kMG]B available$", lines[0])
    assert any(re.match(r"step 1/1: .* tokens/s, .*\d [kMG]B$", line) for line in lines)
    assert not re.search(r"\d[kMG]B|[KMG]iB|generate", said.getvalue())
    assert re.search(r"\npeak +\d\S* [kMG]B\nplanned peak +\d\S* [kMG]B\n", run_table(summary))


def test_what_cannot_be_started_from_is_refused_with_a_cure(folder: Path) -> None:
    gguf = folder / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"start_from: .*is a GGUF file: .*trivium export .* --to hf --out") as caught:
        further(folder, "never", start_from=str(gguf))
    assert "\n" not in str(caught.value)
    shape = further(folder, "never").model
    with pytest.raises(UserError, match=r"start_from: .*is a GGUF file: "):  # also where `model` says the shape
        pretrain(further(folder, "never", start_from=str(gguf), model=shape.model_dump()))
    with pytest.raises(UserError, match="start_from: there is no model"):
        further(folder, "never", start_from=str(folder / "absent"))
    with pytest.raises(UserError, match=r"has learned 48 positions: set data\.sequence_length=48 or less"):
        further(folder, "never", data={"sequence_length": 64})
    assert not (folder / "never").exists()


def test_a_classifier_has_no_token_scores_to_learn(folder: Path) -> None:
    size = {"vocab_size": 420, "width": 32, "layers": 1, "heads": 2, "max_positions": 48}
    labels = {"head": "classification", "head_hidden": "tanh", "labels": ("good", "bad")}
    config = ModelConfig(**{**FAMILIES["bert"].shape, "kind": "encoder", **size, **labels})
    tokenizer = Tokenizer.train(texts=[source for source, _ in ROWS], vocab_size=420, kind="encoder")
    save_model_directory(folder / "classifier", build_model(config), config, tokenizer)
    with pytest.raises(
        UserError, match=r"start_from: .*classifier has no token scores .*name a model with the head lm"
    ):
        further(folder, "never", start_from=str(folder / "classifier"), objective="masked")
