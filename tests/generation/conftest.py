"""A small tokenizer learned from real text, a small decoder, and its twin in `transformers`."""

from __future__ import annotations

import argparse
import inspect
import random
import textwrap

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trivium.models.config import ModelConfig
from trivium.models.build import build_model, initialise
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

TEXT = "".join(inspect.getsource(module) for module in (argparse, random, textwrap))


@pytest.fixture(scope="session")
def text() -> str:
    """Real text: the source of three modules of the standard library."""
    return TEXT


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 entries."""
    return Tokenizer.train(texts=[TEXT], vocab_size=400)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Decoder:
    """A decoder with grouped heads, whose weights are large enough for its scores to be far apart."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=64,
        layers=2,
        heads=4,
        kv_heads=2,
        max_positions=320,
        tied_embeddings=False,
        init_std=0.15,
    )
    model = build_model(config)
    initialise(model, config, seed=1)
    return model.eval()


@pytest.fixture
def prompts(text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """100 prompts of 1 to 64 tokens, cut from real text."""
    ids, rng = tokenizer.encode(text), random.Random(0)
    starts = [rng.randrange(len(ids) - 64) for _ in range(100)]
    return [ids[start : start + rng.randint(1, 64)] for start in starts]


@pytest.fixture
def twin(model: Decoder) -> LlamaForCausalLM:
    """The same network in `transformers`, with the same weights."""
    ours = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.width,
            intermediate_size=ours.mlp_width,
            num_hidden_layers=ours.layers,
            num_attention_heads=ours.heads,
            num_key_value_heads=ours.kv_heads,
            max_position_embeddings=ours.max_positions,
            rms_norm_eps=ours.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    names = {
        "embedding": "model.embed_tokens",
        "stack.blocks": "model.layers",
        "stack.norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    weights: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        for mine, their in names.items():
            name = name.replace(f"{mine}.", f"{their}.") if name.startswith(mine) or f".{mine}." in name else name
        weights[name] = weight
    theirs.load_state_dict(weights)
    return theirs.eval()
