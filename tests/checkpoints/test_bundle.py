"""What a user does with a model, and how a model is found by name."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trivium as tv
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.directory import save_model_directory
from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.models.build import build_model, initialise
from trivium.tokenizer.bpe import Tokenizer

TEXT = "It was the age of wisdom, it was the age of foolishness. "
CONFIG = ModelConfig(vocab_size=300, width=32, layers=2, heads=4, max_positions=128, init_std=0.2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(CONFIG)
    initialise(model, CONFIG, 0)
    path = tmp_path_factory.mktemp("run") / "model"
    save_model_directory(path, model, CONFIG, Tokenizer.train(texts=[TEXT * 20], vocab_size=290))
    return path


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Bundle:
    return load(directory)


def test_generate_takes_settings_as_object_or_by_name(bundle: Bundle) -> None:
    pieces: list[str] = []
    settings = GenerationSettings(max_new_tokens=12, temperature=0.9, seed=3, ignore_eos=True)
    first = bundle.generate("It was", settings, stream=pieces.append)
    second = bundle.generate("It was", max_new_tokens=12, temperature=0.9, seed=3, ignore_eos=True)
    assert first.text == second.text == "".join(pieces)
    assert bundle.generate("It was", settings, max_new_tokens=4).tokens == first.tokens[:4]
    with pytest.raises(UserError, match="temperature"):
        bundle.generate("It was", temprature=0.5)


def test_ids_that_end_a_text_are_those_of_the_directory(bundle: Bundle, directory: Path, tmp_path: Path) -> None:
    going_on = bundle.generate("It was", max_new_tokens=8, ignore_eos=True).tokens
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, going_on[2]]}))
    stopped = load(copy).generate("It was", max_new_tokens=8)
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == going_on[: going_on.index(going_on[2]) + 1]


def test_logprobs_add_up_to_the_perplexity(bundle: Bundle) -> None:
    text = TEXT * 30  # longer than the context
    scored = bundle.logprobs(text)
    assert "".join(token.text for token in scored) == text
    perplexity = bundle.perplexity(text)
    assert perplexity.num_tokens == len(scored)
    assert -math.fsum(token.logprob for token in scored) / len(scored) == pytest.approx(perplexity.nll, rel=1e-6)


def test_saved_and_loaded_is_the_same(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    ids = torch.randint(0, 300, (1, 20))
    assert torch.equal(copy.model(ids), bundle.model(ids))
    bundle.save(tmp_path / "half", dtype="bf16")
    assert load(tmp_path / "half", dtype="bf16").model.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match="use fp32, bf16 or fp16"):
        load(tmp_path / "half", dtype="int8")  # type: ignore[arg-type]


def test_the_public_name(directory: Path) -> None:
    assert tv.load(directory).config == CONFIG


# ------------------------------------------------------------------------------------------------------ found by name


def test_a_run_is_its_model(directory: Path) -> None:
    assert load(directory.parent).config == CONFIG


def test_what_is_not_there_names_what_is(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no model .*; did you mean .*model\?"):
        load(directory.parent / "modle")
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        load(tmp_path / "nowhere" / "model")
    with pytest.raises(UserError, match="is a file; a model is a directory"):
        load(directory / "config.json")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="a run that has not finished"):
        load(tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # "run/x" looks like a hub id, but run is a folder here
    with pytest.raises(UserError, match="there is no model run/x"):
        load("run/x")


PROGRAM = """
import sys
from trivium.checkpoints.bundle import load
from trivium.errors import UserError
for name in sys.argv[1:]:
    try:
        print(load(name).config.width)
    except UserError as error:
        print(error)
"""


def test_hub_ids_are_found_in_the_offline_cache(directory: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--small"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    for file in directory.iterdir():
        (snapshot / file.name).symlink_to(file)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    command = [sys.executable, "-c", PROGRAM, "someone/small", "someone/other"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found, missing = done.stdout.splitlines()
    assert found == "32"
    assert missing.startswith("there is no directory someone/other, and the Hugging Face hub did not give it")
