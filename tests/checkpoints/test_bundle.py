"""What a user does with a model, and how a model is found by name."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import trivium as tv
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.directory import save_model_directory
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.generation.settings import GenerationSettings
from trivium.models.build import build_model, initialise
from trivium.models.config import Head, ModelConfig
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


# --------------------------------------------------------------------------------------------------- kinds and heads

SHAPES = {"vocab_size": 400, "width": 32, "layers": 2, "heads": 4, "init_std": 0.2}


def saved_as(path: Path, family: str, head: Head = "lm", labels: tuple[str, ...] = (), **more: Any) -> Path:
    """A small fresh model of a family, with a tokenizer of its kind."""
    config = ModelConfig(**{**SHAPES, **FAMILIES[family].shape, "max_positions": 128})
    if head != "lm":
        config = FAMILIES[family].with_head(config, head, labels)
    model = build_model(config)
    initialise(model, config, 0)
    tokenizer = Tokenizer.train(texts=[TEXT * 20], vocab_size=380, kind=config.kind)
    save_model_directory(path, model, config, tokenizer, family=family, **more)
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One model for each use."""
    folder = tmp_path_factory.mktemp("kinds")
    labels = ("bad", "good")
    return {
        "decoder": load(saved_as(folder / "decoder", "gpt2")),
        "masked": load(saved_as(folder / "masked", "bert")),
        "seq2seq": load(saved_as(folder / "seq2seq", "bart")),
        "classifier": load(saved_as(folder / "classifier", "roberta", "classification", labels)),
        "embedder": load(saved_as(folder / "embedder", "bert", "none")),
        "tagger": load(saved_as(folder / "tagger", "distilbert", "token_classification", labels)),
    }


# What each model can do; everything else is refused with the words that follow.
USES = {
    "decoder": ("generate", "perplexity", "logprobs"),
    "masked": ("fill_mask",),
    "seq2seq": ("generate", "seq2seq"),
    "classifier": ("classify",),
    "embedder": (),
    "tagger": (),
}
ARGUMENTS = {"fill_mask": "It was the {mask} of"}


def refusals(bundle: Bundle) -> dict[str, str]:
    """What is said to each method that makes no sense."""
    found = {}
    for method in ("generate", "seq2seq", "fill_mask", "classify", "perplexity", "logprobs"):
        text = ARGUMENTS.get(method, "It was the age").format(mask=bundle.tokenizer.mask_token or "")
        try:
            getattr(bundle, method)(text, **({"max_new_tokens": 3} if method in ("generate", "seq2seq") else {}))
        except UserError as error:
            found[method] = str(error)
    return found


@pytest.mark.parametrize("name", list(USES))
def test_each_model_does_what_it_can_and_says_why_not_the_rest(name: str, bundles: dict[str, Bundle]) -> None:
    refused = refusals(bundles[name])
    assert set(refused) == {"generate", "seq2seq", "fill_mask", "classify", "perplexity", "logprobs"} - set(USES[name])
    assert not any("\n" in words for words in refused.values())


def test_a_refusal_names_the_reason_and_the_right_method(bundles: dict[str, Bundle]) -> None:
    masked, decoder, seq2seq = (refusals(bundles[name]) for name in ("masked", "decoder", "seq2seq"))
    assert masked["perplexity"].startswith("a masked model has no perplexity: it predicts a token from both sides")
    assert "fill" in masked["perplexity"] and "fill" in masked["generate"]
    assert "generate" in decoder["fill_mask"] and "an encoder" in decoder["fill_mask"]
    assert "without a source" in seq2seq["perplexity"] and "seq2seq" in seq2seq["logprobs"]
    assert decoder["classify"].endswith("a scalar head; this one has a token head (lm)")


def test_a_scalar_head_gives_its_score(tmp_path: Path) -> None:
    found = load(saved_as(tmp_path / "m", "bert", "scalar")).classify("It was", "the age")
    assert found.label == "score" and set(found.probabilities) == {"score"}


@pytest.mark.parametrize("name", list(USES))
def test_the_family_is_kept(name: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    bundles[name].save(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert copy.family == bundles[name].family and copy.config == bundles[name].config
    state = bundles[name].model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in copy.model.state_dict().items())
    first, second = (tensors_of(path) for path in (tmp_path / "copy", _again(copy, tmp_path / "again")))
    assert first == second


def _again(bundle: Bundle, path: Path) -> Path:
    bundle.save(path)
    return path


def tensors_of(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_an_encoder_decoder_generates_as_its_directory_says(tmp_path: Path) -> None:
    settings = GenerationSettings(num_beams=3, length_penalty=0.5, no_repeat_ngram_size=2, max_new_tokens=9)
    bundle = load(saved_as(tmp_path / "m", "bart", generation=settings))
    asked = {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "max_new_tokens": 9}
    assert bundle.generation == asked
    plain = replace(bundle, generation={})
    found = bundle.seq2seq("It was the age of wisdom").tokens
    assert found == plain.generate("It was the age of wisdom", **asked).tokens
    assert found != plain.generate("It was the age of wisdom", max_new_tokens=9).tokens  # the settings do matter
    assert len(bundle.generate("It was", GenerationSettings(max_new_tokens=3), ignore_eos=True).tokens) == 3
    assert bundle.generate("It was", temperature=0.9, seed=1).tokens  # a draw, not a search
    bundle.save(tmp_path / "copy")
    assert load(tmp_path / "copy").generation == asked


def test_a_decoder_is_not_told_how_to_search(directory: Path) -> None:
    assert load(directory).generation == {} and load(directory).family == "llama" and load(directory).notes == ()


def test_a_new_head(directory: Path, tmp_path: Path) -> None:
    bundle = load(directory, head="classification", labels=("bad", "good"))
    assert bundle.config.labels == ("bad", "good") and bundle.config.head == "classification"
    assert bundle.notes == (f"{directory}: not there, so drawn from seed 0: score.weight",)
    bundle.save(tmp_path / "classifier")
    again = load(tmp_path / "classifier")
    assert again.config == bundle.config and again.family == "llama" and not again.notes
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert theirs.config.id2label == {0: "bad", 1: "good"}


def test_sentence_vectors_and_pooling(tmp_path: Path) -> None:
    path = saved_as(tmp_path / "m", "bert", "none")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (path / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "1_Pooling"}]))
    bundle = load(path)
    assert len(bundle.notes) == 1 and "embeddings here are the mean" in bundle.notes[0]
    vectors = bundle.embed(["It was", "the age of wisdom"])
    assert vectors.shape == (2, 32) and torch.allclose(vectors.norm(dim=-1), torch.ones(2))
    assert torch.allclose(bundle.embed("It was")[0], vectors[0], atol=1e-6)


def test_a_gguf_file_is_a_model_too(directory: Path, tmp_path: Path) -> None:
    from trivium.checkpoints.gguf_writing import save_gguf

    bundle = load(directory)
    save_gguf(tmp_path / "m.gguf", bundle.model, bundle.config, bundle.tokenizer, dtype="fp32")
    copy = load(tmp_path / "m.gguf")
    assert copy.family == "llama"
    assert copy.generate("It was", max_new_tokens=8).tokens == bundle.generate("It was", max_new_tokens=8).tokens
    with pytest.raises(UserError, match="a new head needs a model directory"):
        load(tmp_path / "m.gguf", head="scalar")


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
