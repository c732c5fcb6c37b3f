"""Shares of a model on several devices."""

from __future__ import annotations

import pytest
import torch

from trivium.errors import UserError
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.sharding import largest_unit_parameters, share, tensor_share
from trivium.training import distributed

LLAMA = ModelConfig(vocab_size=1000, width=64, layers=2, heads=8, kv_heads=4, mlp_width=128, tied_embeddings=False)
GPT2 = ModelConfig(
    vocab_size=1000, width=64, layers=2, heads=8, norm="layernorm", mlp="plain", bias="all", positions="learned"
)


def test_a_tensor_share_by_hand() -> None:
    mine = tensor_share(LLAMA, 4)
    assert (mine.heads, mine.kv_heads, mine.mlp_width, mine.vocab_size) == (2, 1, 32, 250)
    assert (mine.width, mine.head_width, mine.layers) == (64, 8, 2)
    block = 64 * 16 + 2 * 64 * 8 + 16 * 64 + 3 * 64 * 32 + 2 * 64
    assert num_parameters(mine) == 2 * block + 64 + 2 * 250 * 64


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_shares_add_up_to_the_model_and_what_all_hold(config: ModelConfig) -> None:
    ways = 4
    with torch.device("meta"):
        model = build_model(config)
    held_by_all = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "norm" in name or "positions" in name or name.endswith(("output.bias", "down.bias"))
    )
    shares = ways * num_parameters(tensor_share(config, ways))
    assert shares == num_parameters(config) + (ways - 1) * held_by_all
    assert shares != num_parameters(config)  # broken control: as if norms were cut up too


def test_few_key_value_heads_are_held_more_than_once() -> None:
    assert tensor_share(LLAMA, 8).kv_heads == 1
    three = ModelConfig(vocab_size=10, width=96, layers=1, heads=12, kv_heads=3)
    with pytest.raises(UserError, match="the 3 key/value heads"):
        tensor_share(three, 2)
    with pytest.raises(UserError, match=r"tensor_ways=5 does not divide the 8 heads.* choose of 2, 4, 8"):
        tensor_share(LLAMA, 5)
    assert tensor_share(LLAMA, 1) is LLAMA


def test_what_is_gathered_at_once() -> None:
    block = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert largest_unit_parameters(LLAMA) == max(block, 64_000) == 64_000
    small = LLAMA.model_copy(update={"vocab_size": 10})
    assert largest_unit_parameters(small) == block
    assert share(10, 4) == 3


def test_the_bucket_is_that_of_the_trainer() -> None:
    from trivium.planner import sharding

    assert sharding.BUCKET_BYTES == distributed.BUCKET_BYTES
