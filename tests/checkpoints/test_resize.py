"""Another vocabulary size: old logits stay, new rows are the mean; `transformers` does the same but for its noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trivium.checkpoints import resize
from trivium.checkpoints.directory import load_weights, save_weights
from trivium.checkpoints.resize import resize_vocabulary
from trivium.errors import UserError
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig

DECODER = ModelConfig(vocab_size=50, width=24, layers=1, heads=2, init_std=0.3)
CONFIGS = {
    "tied": DECODER,
    "untied": DECODER.changed(tied_embeddings=False, head_bias=True),
    "masked": DECODER.changed(kind="encoder", head_bias=True, head_hidden="activation_norm", norm="layernorm"),
    "encoder-decoder": DECODER.changed(kind="encoder-decoder", head_bias=True, decoder_start_id=3),
    "classifier": DECODER.changed(kind="encoder", head="classification", labels=("a", "b")),
}


def fresh(config: ModelConfig) -> Model:
    model = build_model(config)
    initialise(model, config, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def output(model: Model) -> Tensor:
    """What the model makes of ids that it had before."""
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        return model(ids, ids) if model.config.kind == "encoder-decoder" else model(ids)


def tables(model: Model) -> dict[str, Tensor]:
    """Everything with a row for each token."""
    V = model.config.vocab_size
    return {name: tensor for name, tensor in model.state_dict().items() if len(tensor) == V}


def grows_rightly(config: ModelConfig) -> bool:
    """Old outputs unchanged, added rows the mean, and the model one of its new config."""
    model = fresh(config)
    before, old = output(model), tables(model)
    resized = resize.resize_vocabulary(model, config, 57)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in build_model(resized).state_dict().items()}
    new = tables(model)
    if resized != config.changed(vocab_size=57) or model.config != resized or old.keys() != new.keys():
        return False
    if {name: tensor.shape for name, tensor in model.state_dict().items()} != expected:
        return False
    after = output(model)
    same = torch.equal(after[..., :50], before) if config.head == "lm" else torch.equal(after, before)
    return same and all(
        torch.equal(new[name][:50], rows) and torch.allclose(new[name][50:], rows.mean(0).expand(7, *rows.shape[1:]))
        for name, rows in old.items()
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_grows_by_the_mean(config: ModelConfig) -> None:
    assert grows_rightly(config)


def test_a_new_token_begins_with_the_average_logit() -> None:
    model = fresh(DECODER)
    before = output(model)
    resize_vocabulary(model, DECODER, 51)
    assert torch.allclose(output(model)[..., 50], before.mean(-1), atol=1e-5)


@pytest.mark.parametrize("name", ["tied", "untied", "masked"])
def test_broken_controls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random or zero rows, rows put in front, a bias forgotten: each is seen."""
    real = resize._resized
    broken = {
        "zero rows": lambda rows, size: torch.nn.Parameter(torch.cat([rows, rows[:7] * 0]).detach()),
        "in front": lambda rows, size: torch.nn.Parameter(real(rows, size).detach().roll(7, 0)),
        "no bias": lambda rows, size: real(rows, size) if rows.dim() == 2 else torch.nn.Parameter(rows.detach()),
    }
    for what, mutant in broken.items():
        monkeypatch.setattr(resize, "_resized", mutant)
        assert grows_rightly(CONFIGS[name]) == (what == "no bias" and name == "tied"), what


def test_dtype_and_whether_it_is_trained_are_kept() -> None:
    model = fresh(DECODER).to(torch.bfloat16)
    model.embedding.weight.requires_grad_(False)
    resize_vocabulary(model, DECODER, 60)
    weight = model.embedding.weight
    assert weight.dtype == torch.bfloat16 and not weight.requires_grad and weight.is_contiguous()


def test_fewer_tokens_only_when_asked() -> None:
    model = fresh(CONFIGS["untied"])
    before = output(model)
    with pytest.raises(UserError, match=r"the last 10 tokens would be forgotten; allow it with shrink=True"):
        resize_vocabulary(model, CONFIGS["untied"], 40)
    config = resize_vocabulary(model, CONFIGS["untied"], 40, shrink=True)
    assert config.vocab_size == 40 and torch.allclose(output(model), before[..., :40], atol=1e-6)
    with pytest.raises(UserError, match="must be from 1"):
        resize_vocabulary(model, config, 0, shrink=True)
    both = CONFIGS["encoder-decoder"]
    with pytest.raises(UserError, match="leaves out the id that a target begins with, 3"):
        resize_vocabulary(fresh(both), both, 3, shrink=True)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_transformers_does_the_same_but_for_its_noise(name: str, tmp_path: Path) -> None:
    """Its new rows lie around the mean with 1e-9 of the old rows' covariance: 3e-5 of their spread."""
    config = DECODER.changed(tied_embeddings=name == "tied")
    save_weights(tmp_path / "before", fresh(config), config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "before")
    theirs.resize_token_embeddings(57)
    theirs.save_pretrained(tmp_path / "theirs")
    expected, their_config = load_weights(tmp_path / "theirs")
    model, _ = load_weights(tmp_path / "before")
    assert resize_vocabulary(model, config, 57) == their_config
    for parameter, tensor in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[parameter], tensor, atol=1e-3), parameter
    save_weights(tmp_path / "ours", model, their_config)
    reread = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tied = reread.get_input_embeddings().weight is reread.get_output_embeddings().weight
    assert tied == config.tied_embeddings and reread.config.vocab_size == 57
