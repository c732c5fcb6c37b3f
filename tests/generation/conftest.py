"""Small tokenizers learned from real text, small models, and their twins in `transformers`."""

from __future__ import annotations

import argparse
import inspect
import random
import tempfile
import textwrap
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from trivium.checkpoints.directory import load_weights
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
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
        "head.output": "lm_head",
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


@pytest.fixture(scope="session")
def source_tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 entries with the special tokens of encoder-decoders: `<pad>` 0, `</s>` 1."""
    return Tokenizer.train(texts=[TEXT], vocab_size=400, kind="encoder-decoder")


@pytest.fixture(scope="session")
def t5() -> T5ForConditionalGeneration:
    """A random T5, whose positions are a learned bias."""
    torch.manual_seed(3)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=400,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            initializer_factor=4.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    ).eval()


@pytest.fixture(scope="session")
def bart() -> BartForConditionalGeneration:
    """A random BART: learned positions, post-norm, a bias on the scores; targets begin with `</s>`."""
    torch.manual_seed(4)
    theirs = BartForConditionalGeneration(
        BartConfig(
            vocab_size=400,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            init_std=0.5,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        theirs.final_logits_bias.copy_(torch.randn(1, 400))
    return theirs


@pytest.fixture
def our_t5(t5: T5ForConditionalGeneration) -> EncoderDecoder:
    """`t5` in our words."""
    return translated(t5)


@pytest.fixture
def our_bart(bart: BartForConditionalGeneration) -> EncoderDecoder:
    """`bart` in our words."""
    return translated(bart)


@pytest.fixture
def sources(text: str, source_tokenizer: Tokenizer) -> list[list[int]]:
    """40 sources of 1 to 40 tokens."""
    ids, rng = source_tokenizer.encode(text), random.Random(5)
    starts = [rng.randrange(len(ids) - 40) for _ in range(40)]
    return [[*ids[start : start + rng.randint(0, 39)], 1] for start in starts]


def translated(theirs: PreTrainedModel) -> Any:
    """A model of `transformers` as one of ours, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, _ = load_weights(folder)
    return model
