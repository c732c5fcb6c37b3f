"""Weights as files: the names, layouts, bytes and shards that `transformers` reads and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints.published import THEIRS, published, result, stored_in
from trivium.checkpoints import weights_writing
from trivium.checkpoints.directory import load_weights, save_weights
from trivium.checkpoints.layouts import join
from trivium.families.family import Weight
from trivium.models.build import Model, build_model, initialise
from trivium.models.config import ModelConfig

CONFIG = ModelConfig(vocab_size=320, width=32, layers=2, heads=4, kv_heads=2, tied_embeddings=False, init_std=0.2)


def fresh(config: ModelConfig) -> Model:
    model = build_model(config)
    initialise(model, config, 0)
    return model.eval()


def changed_tensors(name: str, folder: Path, shards: str = "1GB") -> list[str]:
    """Read what `transformers` has written, write it, and name the tensors that are not the same, byte for byte."""
    theirs = published(name)
    theirs.save_pretrained(folder / "theirs", max_shard_size=shards)
    model, config = load_weights(folder / "theirs")
    save_weights(folder / "ours", model, config, family=name, largest_shard_bytes=10_000)
    before, after = stored_in(folder / "theirs"), stored_in(folder / "ours")
    same = [key for key in before.keys() & after.keys() if bits(before[key]) == bits(after[key])]
    return sorted((before.keys() | after.keys()) - set(same))


def bits(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.numpy().tobytes()


@pytest.mark.parametrize("shards", ["1GB", "10KB"])
@pytest.mark.parametrize("name", list(THEIRS))
def test_every_layout_of_names_and_tensors_goes_there_and_back(name: str, shards: str, tmp_path: Path) -> None:
    """Transposed, stacked, stacked by head and row tensors; one table under several names; prefixes."""
    assert changed_tensors(name, tmp_path, shards) == []
    theirs, model = published(name), load_weights(tmp_path / "theirs")[0]
    expected = result(theirs)
    assert (result(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    reread = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert (result(reread) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_broken_control_a_matrix_that_is_not_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A square one, so that no shape tells."""

    def forgetful(weight: Weight, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
        square = weight.layout == "transposed" and tensors[0].shape[0] == tensors[0].shape[1]
        return join(weight._replace(layout="same") if square else weight, tensors, config)

    monkeypatch.setattr(weights_writing, "join", forgetful)
    assert changed_tensors("gpt2", tmp_path) == [f"transformer.h.{n}.attn.c_proj.weight" for n in range(2)]


def test_large_models_are_sharded_so_that_transformers_opens_them(tmp_path: Path) -> None:
    model = fresh(CONFIG)
    save_weights(tmp_path / "one", model, model.config)
    save_weights(tmp_path / "many", model, model.config, largest_shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    assert len(shards) > 3 and {shard.name for shard in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for shard in shards:
        held = load_file(shard)
        assert sum(tensor.nbytes for tensor in held.values()) <= 20_000 or len(held) == 1
        assert all(index["weight_map"][name] == shard.name for name in held)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "many").state_dict()
    ours = load_weights(tmp_path / "many")[0].state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
