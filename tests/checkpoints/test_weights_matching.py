"""Which tensor is which: names with and without prefix, older names, copies, stand-ins, new heads, what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from checkpoints.published import hidden, published, result, stored_in
from trivium.checkpoints import directory
from trivium.checkpoints.directory import load_weights, save_weights
from trivium.errors import UserError
from trivium.families import FAMILIES
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig

CONFIG = ModelConfig(vocab_size=320, width=32, layers=2, heads=4, kv_heads=2, max_positions=64, init_std=0.2)


def fresh(config: ModelConfig, seed: int = 0) -> Model:
    model = build_model(config)
    initialise(model, config, seed)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_weights(tmp_path / "m", fresh(CONFIG), CONFIG)
    return tmp_path / "m"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bart"])
def test_files_of_the_bare_model_are_read_in_both_directions(name: str, tmp_path: Path) -> None:
    """A trunk into a language model (with a new head), and a language model as a trunk; and both as transformers."""
    theirs = published(name)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.base_model.save_pretrained(tmp_path / "bare")
    lines: list[str] = []
    trunk, config = load_weights(tmp_path / "whole", head="none", note=lines.append)
    bare, bare_config = load_weights(tmp_path / "bare")
    assert config.head == bare_config.head == "none"
    assert torch.equal(result(trunk), result(bare))
    whole, _ = load_weights(tmp_path / "whole")
    assert torch.equal(hidden(whole), result(bare))
    save_weights(tmp_path / "ours", trunk, config, family=name)
    assert not any(key.startswith(theirs.base_model_prefix + ".") for key in stored_in(tmp_path / "ours"))
    expected = type(theirs.base_model).from_pretrained(tmp_path / "ours").eval()
    assert torch.allclose(result(expected), result(bare), atol=1e-5)
    again, _ = load_weights(tmp_path / "bare", head="lm", note=lines.append)
    assert torch.equal(hidden(again), hidden(whole))


def test_the_first_gpt2_files_lack_the_prefix_and_hold_masks(tmp_path: Path) -> None:
    published("gpt2").save_pretrained(tmp_path / "m")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in stored_in(tmp_path / "m").items()}
    expected = load_weights(tmp_path / "m")[0].state_dict()
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, tmp_path / "m" / "model.safetensors")
    lines: list[str] = []
    model, config = load_weights(tmp_path / "m", note=lines.append)
    assert config.head == "lm" and not lines
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    # Broken control: a tensor that nothing asks for is seen, whatever its prefix.
    save_file({**weights, "h.0.attn.surprise": torch.ones(3)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r'"h.0.attn.surprise" \(3,\) is unknown'):
        load_weights(tmp_path / "m")


def test_the_first_bert_files_say_gamma_and_beta(tmp_path: Path) -> None:
    theirs = published("bert")
    theirs.save_pretrained(tmp_path / "m")
    expected = load_weights(tmp_path / "m")[0].state_dict()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in stored_in(tmp_path / "m").items()
    }
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    found = load_weights(tmp_path / "m")[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    weights["bert.embeddings.LayerNorm.weight"] = weights["bert.embeddings.LayerNorm.gamma"].clone()
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"LayerNorm.* and .*LayerNorm.* are the same tensor"):
        load_weights(tmp_path / "m")


# ------------------------------------------------------------------------------------------------------------ new heads


def new_head_is_right(path: Path, seed: int) -> bool:
    """A classifier on a language model: its trunk as in the file, its head as in a fresh model of this seed."""
    model, config = load_weights(path, head="classification", labels=["no", "yes", "maybe"], seed=seed)
    base = load_weights(path)[0].state_dict()
    new = fresh(config, seed).state_dict()
    return all(
        torch.equal(tensor, (new if name.startswith("head.") else base)[name])
        for name, tensor in model.state_dict().items()
    )


def test_a_new_head_alone_is_drawn(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    _, config = load_weights(saved, head="classification", labels=["no", "yes", "maybe"], note=lines.append)
    assert (config.head, config.labels, config.pooling) == ("classification", ("no", "yes", "maybe"), "last")
    assert lines == [f"{saved}: not there, so drawn from seed 0: score.weight"]
    assert new_head_is_right(saved, 0) and new_head_is_right(saved, 7)
    # Broken control: a head drawn from another seed is seen.
    real = directory.initialise
    monkeypatch.setattr(directory, "initialise", lambda model, config, seed: real(model, config, seed + 1))
    assert not new_head_is_right(saved, 7)


def test_everything_but_the_new_head_must_be_there(saved: Path) -> None:
    weights = stored_in(saved)
    del weights["model.norm.weight"]
    weights["model.layers.9.surprise"] = torch.zeros(2)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight is missing.*surprise\" \(2,\) is unknown"):
        load_weights(saved, head="classification", labels=["a", "b"])


@pytest.mark.parametrize(
    ("head", "labels", "words"),
    [
        ("classification", (), "needs labels: the names of its classes"),
        ("span", ("a",), "labels are for head=classification or head=token_classification"),
        (None, ("a",), "labels are for head=classification or head=token_classification"),
        ("ranking", (), "llama models have no ranking head: choose lm, "),
    ],
)
def test_heads_that_make_no_sense_are_refused(head: Any, labels: tuple[str, ...], words: str, saved: Path) -> None:
    with pytest.raises(UserError, match=words):
        load_weights(saved, head=head, labels=labels)


def test_other_classes_get_another_projection(saved: Path, tmp_path: Path) -> None:
    """Three classes in place of three others: equal shapes, yet not the same thing."""
    first, config = load_weights(saved, head="classification", labels=["no", "yes", "maybe"], seed=5)
    save_weights(tmp_path / "new", first, config)
    trained = first.state_dict()["head.output.weight"]
    lines: list[str] = []
    for labels in ((), ("no", "yes", "maybe")):
        same, same_config = load_weights(tmp_path / "new", head="classification", labels=labels, note=lines.append)
        assert same_config == config and torch.equal(same.state_dict()["head.output.weight"], trained) and not lines
    other, _ = load_weights(tmp_path / "new", head="classification", labels=["a", "b", "c"], note=lines.append)
    assert not torch.equal(other.state_dict()["head.output.weight"], trained)
    assert "left out: score.weight" in lines[0] and "drawn from seed 0: score.weight" in lines[1]
    back, back_config = load_weights(tmp_path / "new", head="lm", note=lines.append)
    assert back_config == load_weights(saved)[1] and torch.equal(hidden(back), hidden(first))


def test_a_trunk_may_have_another_name_under_another_head(saved: Path, tmp_path: Path) -> None:
    """`LlamaForQuestionAnswering` calls `model.` `transformer.`."""
    model, config = load_weights(saved, head="span")
    save_weights(tmp_path / "new", model, config)
    assert "transformer.embed_tokens.weight" in stored_in(tmp_path / "new")
    theirs = transformers.LlamaForQuestionAnswering.from_pretrained(tmp_path / "new").eval()
    assert torch.allclose(result(model)[..., 0], result(theirs), atol=1e-5)
    assert torch.equal(hidden(load_weights(tmp_path / "new", head="lm")[0]), hidden(load_weights(saved)[0]))


def test_a_layer_of_the_head_is_taken_where_the_file_has_it(tmp_path: Path) -> None:
    """BERT's pooler is part of a classifier; its transform for masked tokens is not."""
    lines: list[str] = []
    masked = published("bert")
    masked.save_pretrained(tmp_path / "masked")
    model, config = load_weights(tmp_path / "masked", head="classification", labels=["a", "b"], note=lines.append)
    assert torch.equal(model.state_dict()["head.hidden.weight"], fresh(config).state_dict()["head.hidden.weight"])
    assert "cls.predictions.transform.dense.weight" in lines[0] and "bert.pooler.dense.weight" in lines[1]
    both = published("bert", class_name="BertForPreTraining")
    both.save_pretrained(tmp_path / "both")
    model, _ = load_weights(tmp_path / "both", head="classification", labels=["a", "b"])
    pooler = both.bert.pooler.dense.weight
    assert torch.equal(model.state_dict()["head.hidden.weight"], pooler)


def test_a_copy_alone_will_do(tmp_path: Path) -> None:
    theirs = published("t5")
    theirs.save_pretrained(tmp_path / "m")
    weights = stored_in(tmp_path / "m")
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, tmp_path / "m" / "model.safetensors")
    assert torch.equal(load_weights(tmp_path / "m")[0].embedding.weight, theirs.shared.weight)
    weights["decoder.embed_tokens.weight"] = weights["encoder.embed_tokens.weight"] + 1
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"embed_tokens\.weight is a copy of shared\.weight, but its numbers differ"):
        load_weights(tmp_path / "m")


def stands_alone(path: Path) -> bool:
    """An absent output matrix begins as the embeddings, in memory of its own."""
    model, _ = load_weights(path)
    embedding, output = model.embedding.weight, model.head.output.weight
    equal = torch.equal(embedding, output)
    with torch.no_grad():
        output.add_(1)
    return equal and not torch.equal(embedding, output)


def test_another_tensor_may_stand_for_one_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T5 1.1 without an output matrix."""
    config = ModelConfig(vocab_size=99, width=24, layers=1, heads=4, **FAMILIES["t5"].shape)
    save_weights(tmp_path / "m", fresh(config), config, family="t5")
    weights = stored_in(tmp_path / "m")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    lines: list[str] = []
    load_weights(tmp_path / "m", note=lines.append)
    assert lines == [f"{tmp_path / 'm'}: lm_head.weight is not there and begins as shared.weight"]
    assert stands_alone(tmp_path / "m")
    # Broken control: two parameters in one memory are seen.
    monkeypatch.setattr(Tensor, "clone", lambda self: self)
    assert not stands_alone(tmp_path / "m")
