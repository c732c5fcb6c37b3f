"""The ledger: exactly nothing lost by a model that did not change, something by one that was spoilt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trivium.data.corpus import standard_library_rows
from trivium.data.split import is_held_out
from trivium.errors import UserError
from trivium.finetuning.forgetting import (
    EXCERPT_CHARACTERS,
    HELD_OUT_FRACTION,
    Head,
    Ledger,
    general_texts,
    statement,
    suggested_replay_share,
)
from trivium.finetuning.recipe import ForgettingSettings
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import Kind, ModelConfig
from trivium.runtime import Runtime
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.evaluate import EvaluationInterrupted

TEXTS = ["def add(a, b):\n    return a + b\n", "The cat sat on the mat; the dog ran after the cat. " * 8]
FAMILIES: dict[Kind, dict[str, object]] = {
    "decoder": {},
    "encoder": {"positions": "learned", "norm": "layernorm", "norm_placement": "post", "mlp": "plain"},
    "encoder-decoder": {"decoder_layers": 2, "positions": "relative"},
}


def tokenizer_for(kind: Kind) -> Tokenizer:
    return Tokenizer.train(texts=TEXTS * 4, vocab_size=360, kind=kind)


def model_for(kind: Kind, tokenizer: Tokenizer) -> tuple[Model, ModelConfig]:
    config = ModelConfig(
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        width=32,
        layers=2,
        heads=2,
        max_positions=128,
        **FAMILIES[kind],  # type: ignore[arg-type]
    )
    model = build_model(config)
    initialise(model, config, 0)
    return model.eval(), config


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_did_not_change_lost_nothing_and_what_was_spoilt_did(kind: Kind) -> None:
    tokenizer = tokenizer_for(kind)
    model, config = model_for(kind, tokenizer)
    ledger = Ledger(TEXTS, tokenizer, config, Runtime(), None)
    assert ledger.why_not == ""
    before = ledger.measure(model)
    assert ledger.measure(model) == before > 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert ledger.measure(model) > before + 0.1


def test_an_encoder_under_another_head_is_measured_under_its_own() -> None:
    tokenizer = tokenizer_for("encoder")
    whole, config = model_for("encoder", tokenizer)
    before = Ledger(TEXTS, tokenizer, config, Runtime(), None).measure(whole)
    classifying = config.model_copy(update={"head": "classification", "labels": ("a", "b")})
    model = build_model(classifying)
    initialise(model, classifying, 0)
    state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(state, strict=False)
    ledger = Ledger(TEXTS, tokenizer, config, Runtime(), Head(whole.head, config))
    assert ledger.measure(model) == before
    assert model.config is classifying and model.head is not whole.head, "the model itself stays as it is"


def test_it_says_why_nothing_can_be_measured() -> None:
    tokenizer = tokenizer_for("decoder")
    _, config = model_for("decoder", tokenizer)
    assert "forgetting.paths" in Ledger([], tokenizer, config, Runtime(), None).why_not
    headless = config.model_copy(update={"head": "none"})
    assert "without a head" in Ledger(TEXTS, tokenizer, headless, Runtime(), None).why_not
    masked = replace(Runtime())
    encoder = config.model_copy(update={"kind": "encoder"})
    assert "neither a mask nor sentinels" in Ledger(TEXTS, tokenizer, encoder, masked, None).why_not


def test_it_can_be_broken_off() -> None:
    tokenizer = tokenizer_for("decoder")
    model, config = model_for("decoder", tokenizer)
    with pytest.raises(EvaluationInterrupted):
        Ledger(TEXTS, tokenizer, config, Runtime(), None).measure(model, lambda: True)


def test_the_standard_library_is_sampled_from_files_that_replay_leaves_out() -> None:
    texts = general_texts(ForgettingSettings(max_bytes=20_000))
    assert 10_000 < sum(len(text.encode()) for text in texts) <= 20_000
    held_out = [
        str(row.values["text"])[:EXCERPT_CHARACTERS]
        for row in standard_library_rows()
        if is_held_out(str(row.values["text"]), HELD_OUT_FRACTION)
    ]
    assert all(any(whole.startswith(text) for whole in held_out) for text in texts)
    assert len(set(texts)) == len(texts) > 5, "spread over files"


def test_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("häuser " * 1000)
    settings = ForgettingSettings(paths=(str(tmp_path / "a.txt"),), max_bytes=1001)
    (text,) = general_texts(settings)
    assert len(text.encode()) <= 1001 and text.startswith("häuser")
    (tmp_path / "b.txt").write_text("  \n")
    with pytest.raises(UserError, match="hold no text"):
        general_texts(ForgettingSettings(paths=(str(tmp_path / "b.txt"),)))
    assert general_texts(ForgettingSettings(paths=())) == []


def test_the_statement_of_a_run() -> None:
    points = [
        {"step": 0, "general": 2.0, "held_out_loss": 3.0},
        {"step": 5, "general": 2.5, "held_out_loss": 1.0},
    ]
    found = statement(points, "general_bits_per_byte", replay=0.0)
    assert (found["lost"], found["gained"], found["suggested_replay_share"]) == (0.5, 2.0, 0.5)
    assert suggested_replay_share(2.0, 2.0) == suggested_replay_share(2.0, 1.0) == 0.0
    assert 0 < suggested_replay_share(2.0, 2.08) < suggested_replay_share(2.0, 2.2)
