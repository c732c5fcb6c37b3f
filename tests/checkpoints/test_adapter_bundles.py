"""Adapters as a user has them: opened with their base by one name, switched, over packed weights, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trivium as tv
from trivium.checkpoints.adapter_reading import described_adapter
from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.directory import save_model_directory
from trivium.checkpoints.merging import merge_adapter_directory
from trivium.checkpoints.resolve import resolve_model
from trivium.cli import main
from trivium.errors import UserError
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.peft.apply import adapter_names, adapter_state, add_adapter, load_adapter_state
from trivium.peft.settings import (
    DoraSettings,
    HoulsbySettings,
    IA3Settings,
    LoraSettings,
    NoPeftSettings,
    PrefixTuningSettings,
    PromptSettings,
)
from trivium.tokenizer.bpe import Tokenizer

TEXT = "It was the age of wisdom, it was the age of foolishness. "
CONFIG = ModelConfig(
    vocab_size=300, width=32, layers=2, heads=4, mlp_width=64, max_positions=128, init_std=0.2, tied_embeddings=False
)
IDS = torch.arange(20, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(CONFIG)
    initialise(model, CONFIG, 0)
    path = tmp_path_factory.mktemp("run") / "model"
    save_model_directory(path, model, CONFIG, Tokenizer.train(texts=[TEXT * 20], vocab_size=290))
    return path


def with_adapter(base: Path, settings: Any, name: str = "default", seed: int = 1, **how: Any) -> Bundle:
    """The base with an adapter whose numbers were moved."""
    bundle = load(base, **how)
    add_adapter(bundle.model, settings, name=name)
    move(bundle, name, seed)
    return bundle


def move(bundle: Bundle, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(bundle.model, name)
    moved = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    load_adapter_state(bundle.model, name, moved)


@torch.no_grad()
def logits(bundle: Bundle) -> Tensor:
    return bundle.model(IDS)


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


METHODS = [
    LoraSettings(),
    DoraSettings(rank=2),
    IA3Settings(),
    PromptSettings(virtual_tokens=3),
    HoulsbySettings(bottleneck=4),
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: settings.method)
def test_an_adapter_is_opened_with_its_base(settings: Any, base: Path, tmp_path: Path) -> None:
    bundle = with_adapter(base, settings)
    run = tmp_path / "run"
    bundle.save_adapter(run / "adapter")
    for name in (run, run / "adapter"):  # a run directory whose result is an adapter is found like one with a model
        again = tv.load(name)
        assert apart(logits(again), logits(bundle)) <= 2e-6
        assert again.generate("It was", max_new_tokens=5).tokens == bundle.generate("It was", max_new_tokens=5).tokens
        with again.adapter(None):
            assert torch.equal(logits(again), logits(load(base)))
        assert apart(logits(again), logits(bundle)) <= 2e-6
    assert again.source == str(base) and resolve_model(run) == run / "adapter"
    assert described_adapter(run / "adapter")[0] == again.config


def test_adapters_are_added_by_name_and_switched_for_a_call(base: Path, tmp_path: Path) -> None:
    expected = {}
    for number, settings in enumerate(METHODS):
        bundle = with_adapter(base, settings, seed=number)
        bundle.save_adapter(tmp_path / settings.method)
        expected[settings.method] = logits(bundle)
    bundle = load(base)
    untouched = logits(bundle)
    for method in expected:
        bundle.add_adapter(tmp_path / method, method)
    for method in expected:
        with bundle.adapter(method):
            assert apart(logits(bundle), expected[method]) <= 2e-6
            with bundle.adapter(None):
                assert torch.equal(logits(bundle), untouched)
        assert apart(logits(bundle), expected["houlsby"]) <= 2e-6  # the last that was added stays the active one
    with pytest.raises(UserError, match="no adapter 'other'"), bundle.adapter("other"):
        pass
    for method in expected:  # written from a model that has several
        bundle.save_adapter(tmp_path / "again", method)
        assert apart(logits(load(tmp_path / "again")), expected[method]) <= 2e-6


def test_a_new_head_comes_with_its_labels(base: Path, tmp_path: Path) -> None:
    settings = LoraSettings(also_train=("head",))
    bundle = with_adapter(base, settings, head="classification", labels=("good", "bad", "so so"))
    bundle.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a")
    assert again.config.labels == ("good", "bad", "so so")
    assert apart(logits(again), logits(bundle)) <= 2e-6
    assert again.classify(TEXT).label == bundle.classify(TEXT).label
    with pytest.raises(UserError, match="classification head"):
        load(base).add_adapter(tmp_path / "a")
    merge_adapter_directory(tmp_path / "a", tmp_path / "m")
    assert apart(logits(load(tmp_path / "m")), logits(bundle)) <= 1e-5


@pytest.mark.parametrize("settings", [METHODS[0], METHODS[3]], ids=["lora", "prompt"])
@pytest.mark.parametrize("form", ["int8", "int4", "bf16"])
def test_over_packed_weights(form: str, settings: Any, base: Path, tmp_path: Path) -> None:
    bundle = with_adapter(base, settings, quantize=form)
    bundle.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a", quantize=form)
    assert apart(logits(again).float(), logits(bundle).float()) <= 2e-6
    assert 1e-6 < apart(logits(again).float(), logits(load(tmp_path / "a"))) < 0.5


def test_where_the_base_is_may_be_said_in_several_ways(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    bundle = with_adapter(base, LoraSettings())
    bundle.save_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    values = json.loads(file.read_text())
    assert values["base_model_name_or_path"] == str(base.resolve())

    def called(name: Any) -> None:
        file.write_text(json.dumps(values | {"base_model_name_or_path": name}))

    monkeypatch.chdir(base.parent)
    called("model")  # from where we are
    assert apart(logits(load(tmp_path / "a")), logits(bundle)) <= 2e-6
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="its base is not here"):
        load(tmp_path / "a")
    (tmp_path / "model").symlink_to(base)
    called("../model")  # from the adapter
    assert apart(logits(load(tmp_path / "a")), logits(bundle)) <= 2e-6
    called(str(tmp_path / "a"))
    with pytest.raises(UserError, match="an adapter itself"):
        load(tmp_path / "a")
    called(None)
    with pytest.raises(UserError, match="must name the model"):
        load(tmp_path / "a")
    load(base).add_adapter(tmp_path / "a")  # on a base that is there it is not needed


def test_what_is_for_the_model_alone_is_refused(base: Path, tmp_path: Path) -> None:
    bundle = with_adapter(base, LoraSettings())
    with pytest.raises(UserError, match="merge_adapter"):
        bundle.save(tmp_path / "m")
    with pytest.raises(UserError, match="quantize='int8'"):
        tv.quantize(bundle, "int8")
    assert not (tmp_path / "m").exists()
    bundle.merge_adapter()
    bundle.save(tmp_path / "m")
    whole = load(base)
    add_adapter(whole.model, NoPeftSettings())
    with pytest.raises(UserError, match="save the model"):
        whole.save_adapter(tmp_path / "n")


@pytest.mark.parametrize("settings", METHODS[:3], ids=lambda settings: settings.method)
def test_merged_is_as_near_as_rounding(settings: Any, base: Path, tmp_path: Path) -> None:
    bundle = with_adapter(base, settings)
    bundle.save_adapter(tmp_path / "a")
    found = merge_adapter_directory(tmp_path / "a", tmp_path / "m")
    assert found["max_logit_difference"] < 1e-4 and found["kl"] < 1e-9 and found["top1_agreement"] > 0.999
    assert found["positions"] > 100
    merged = load(tmp_path / "m")
    assert adapter_names(merged.model) == () and apart(logits(merged), logits(bundle)) <= 1e-5
    rounded = merge_adapter_directory(tmp_path / "a", tmp_path / "b", dtype="bf16")
    assert rounded["max_logit_difference"] > 1e-3 and rounded["kl"] > found["kl"]


def test_a_wrong_merge_would_be_seen(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Broken control: with a scale of twice the size the comparison tells."""
    from trivium.peft.lora import LowRank

    with_adapter(base, LoraSettings()).save_adapter(tmp_path / "a")
    right = LowRank.merged

    def twice(self: Any, matrix: Any) -> Any:
        weight, bias = right(self, matrix)
        return 2 * weight - matrix[0], bias

    monkeypatch.setattr(LowRank, "merged", twice)
    found = merge_adapter_directory(tmp_path / "a", tmp_path / "m")
    assert found["max_logit_difference"] > 0.05 and found["kl"] > 1e-4


UNMERGEABLE = [METHODS[3], METHODS[4], PrefixTuningSettings(virtual_tokens=3)]


@pytest.mark.parametrize("settings", UNMERGEABLE, ids=lambda settings: settings.method)
def test_what_cannot_be_merged_is_refused_before_the_base_is_read(settings: Any, base: Path, tmp_path: Path) -> None:
    with_adapter(base, settings).save_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nowhere"}))
    with pytest.raises(UserError, match="cannot be merged"):
        merge_adapter_directory(tmp_path / "a", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_verb(base: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = with_adapter(base, LoraSettings())
    bundle.save_adapter(tmp_path / "run" / "adapter")
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "m"), "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(tmp_path / "m") and found["method"] == "lora"
    assert {"max_logit_difference", "kl", "top1_agreement", "positions"} <= found.keys()
    for arguments, said in (
        (["merge", str(base), "--out", str(tmp_path / "x")], "nothing to merge"),
        (["merge", str(tmp_path / "run"), "--out", str(tmp_path / "run")], "is not replaced"),
        (["merge", str(tmp_path / "run"), "--out", str(tmp_path / "x"), "--dtype", "int8"], "use fp32"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    # Verbs open an adapter like a model.
    prompt = ["--prompt", "It was", "--max-new-tokens", "5", "--json", "-q"]
    assert main(["generate", str(tmp_path / "run"), *prompt]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == bundle.generate("It was", max_new_tokens=5).text


def test_of_real_weights(tmp_path: Path) -> None:
    """MiniLM by its built-in name: an adapter beside it, opened by one name, and merged."""
    bundle = load("minilm-l6")
    add_adapter(bundle.model, LoraSettings(rank=4, targets=("query", "value")))
    plain = bundle.embed("a cat")
    move(bundle, "default", 0)
    bundle.save_adapter(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "minilm-l6"
    again = load(tmp_path / "a")
    expected = bundle.embed("a cat")
    assert apart(again.embed("a cat"), expected) <= 2e-6 and apart(plain, expected) > 1e-2
    found = merge_adapter_directory(tmp_path / "a", tmp_path / "m")
    assert found["max_difference"] < 1e-4
    assert apart(load(tmp_path / "m").embed("a cat"), expected) <= 1e-4
