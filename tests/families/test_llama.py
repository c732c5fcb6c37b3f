"""Our decoder against `LlamaForCausalLM` of `transformers`: logits, gradients, config and weight names, both ways."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from trivium.errors import UserError
from trivium.families import FAMILIES, family_for
from trivium.families.llama import LLAMA
from trivium.models.config import ModelConfig
from trivium.models.build import build_model
from trivium.models.decoder import Decoder

B, T = 2, 33


def random_llama(seed: int) -> ModelConfig:
    """Grouped, multi-query or plain heads, tied or not, biased or not, odd sizes."""
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 4, 6])
    kv_heads = pick.choice([k for k in range(1, heads + 1) if heads % k == 0])
    return ModelConfig(
        vocab_size=pick.randint(5, 97),
        width=heads * 2 * pick.randint(1, 7),
        layers=pick.randint(1, 3),
        heads=heads,
        kv_heads=kv_heads,
        head_width=pick.choice([0, 0, 6]),
        mlp_width=pick.randint(3, 77),
        norm_eps=pick.choice([1e-5, 1e-6]),
        rope_theta=pick.choice([500.0, 10_000.0]),
        max_positions=pick.choice([64, 128]),
        activation=pick.choice(["silu", "gelu_tanh", "gelu", "relu"]),
        bias=pick.choice(["none", "attention", "mlp", "all"]),
        tied_embeddings=pick.random() < 0.5,
        attention_dropout=pick.choice([0.0, 0.1]),
    )


CONFIGS = [random_llama(seed) for seed in range(12)]


def published(config: ModelConfig, seed: int = 0) -> LlamaForCausalLM:
    """A `transformers` model of this shape whose weights, norms and biases are all drawn at random."""
    settings = {key: value for key, value in LLAMA.write_config(config).items() if key != "rope_theta"}
    model = LlamaForCausalLM(LlamaConfig(**settings, bos_token_id=0, eos_token_id=0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name else 0.0
            parameter.copy_(offset + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours_with_weights_of(theirs: LlamaForCausalLM, config: ModelConfig) -> Decoder:
    model = build_model(config)
    weights = theirs.state_dict()
    model.load_state_dict({name: weights[LLAMA.to_published(name)] for name in model.state_dict()})
    return model.eval()


def loss_and_gradients(logits: Tensor, ids: Tensor, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    parameters = dict(model.named_parameters())
    return loss, dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def differences(theirs: LlamaForCausalLM, ours: Decoder) -> tuple[float, float]:
    """Largest difference of logits, and of gradients of the loss, each relative to its scale."""
    ids = torch.randint(0, ours.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(4))
    expected, found = theirs(input_ids=ids, use_cache=False).logits, ours(ids)
    _, their_gradients = loss_and_gradients(expected, ids, theirs)
    _, our_gradients = loss_and_gradients(found, ids, ours)
    gradients = 0.0
    for name, gradient in our_gradients.items():
        reference = their_gradients[LLAMA.to_published(name)]
        scale = max(float(reference.abs().max()), 1e-3 * max(float(g.abs().max()) for g in their_gradients.values()))
        gradients = max(gradients, float((gradient - reference).abs().max()) / scale)
    return ((found - expected).abs().max() / expected.abs().max()).item(), gradients


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_equals_transformers_in_fp32(config: ModelConfig) -> None:
    theirs = published(config)
    logits, gradients = differences(theirs, ours_with_weights_of(theirs, config))
    assert logits <= 1e-5
    assert gradients <= 1e-4


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_equals_transformers_in_fp64(config: ModelConfig) -> None:
    """Their RMSNorm computes in fp32 whatever it is given: torch's takes its place."""
    theirs = published(config)
    ours = ours_with_weights_of(theirs, config).double()
    for parent in list(theirs.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(config.width, eps=config.norm_eps)
                norm.weight = child.weight
                setattr(parent, name, norm)
    logits, gradients = differences(theirs.double(), ours)
    assert logits <= 1e-12
    assert gradients <= 1e-10


@pytest.mark.parametrize(
    ("changes", "seen"),
    [({"rope_theta": 9_000.0}, 1e-4), ({"norm_eps": 1e-2}, 1e-4), ({"activation": "gelu_tanh"}, 1e-4)],
    ids=str,
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], seen: float) -> None:
    config = ModelConfig(vocab_size=50, width=24, layers=2, heads=4, norm_eps=1e-6)
    theirs = published(config)
    logits, gradients = differences(theirs, ours_with_weights_of(theirs, config.changed(**changes)))
    assert logits > seen and gradients > seen


def test_broken_control_swapped_weights_are_seen() -> None:
    config = ModelConfig(vocab_size=50, width=24, layers=2, heads=4)
    theirs = published(config)
    ours = ours_with_weights_of(theirs, config)
    mlp = ours.stack.blocks[0].mlp
    mlp.gate, mlp.up = mlp.up, mlp.gate
    assert differences(theirs, ours)[0] > 1e-3


def test_bf16_autocast_is_no_worse_than_theirs() -> None:
    config = ModelConfig(vocab_size=200, width=64, layers=3, heads=4)
    theirs = published(config)
    ours = ours_with_weights_of(theirs, config)
    ids = torch.randint(0, 200, (4, 200), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = ours(ids)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(found.float() - exact).norm() for found in (ours(ids), theirs(input_ids=ids).logits)]
    assert errors[0] < 1.5 * errors[1]


# ------------------------------------------------------------------------------------------------------ config, names


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_config_survives_both_ways(config: ModelConfig, tmp_path: Any) -> None:
    assert LLAMA.read_config(LLAMA.write_config(config), "test") == config
    theirs = LlamaConfig(**{k: v for k, v in LLAMA.write_config(config).items() if k != "rope_theta"})
    assert LLAMA.read_config(theirs.to_dict(), "test") == config


def test_names_are_those_of_transformers() -> None:
    for config in CONFIGS:
        names = {LLAMA.to_published(name) for name in build_model(config).state_dict()}
        expected = set(published(config).state_dict()) - ({"lm_head.weight"} if config.tied_embeddings else set())
        assert names == expected


def test_older_files_are_read() -> None:
    """What transformers 4 wrote, and keys left out: their meaning is that of `LlamaConfig`."""
    old = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e5, "rope_scaling": None, "head_dim": None}
    config = LLAMA.read_config({**old, "tie_word_embeddings": None, "attention_dropout": None}, "test")
    expected = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert (config.rope_theta, config.head_width, config.kv_heads) == (5e5, 16, 4)
    assert config.vocab_size == expected.vocab_size and config.layers == expected.num_hidden_layers
    assert config.mlp_width == expected.intermediate_size and config.norm_eps == expected.rms_norm_eps
    assert config.tied_embeddings is expected.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 'rope_scaling of type "llama3"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, 'rope_parameters of type "yarn"'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"hidden_act": "quick_gelu"}, 'hidden_act is "quick_gelu"'),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"num_key_value_heads": 3}, "kv_heads=3 does not divide heads=32"),
        ({"hidden_size": -1}, "width"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
    ids=str,
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LLAMA.read_config(changes, "DIR/config.json")


def test_family_for_names_what_must_change() -> None:
    config = ModelConfig(vocab_size=50, width=24, layers=2, heads=4)
    assert family_for(config) is FAMILIES["llama"]
    with pytest.raises(UserError) as caught:
        family_for(config.changed(norm="layernorm", positions="learned", bias="qkv"))
    message = str(caught.value)
    for words in ("norm must be rmsnorm", "positions must be rotary", "bias must be one of none, attention, mlp, all"):
        assert words in message
    with pytest.raises(UserError, match="must divide width"):
        family_for(config.changed(heads=5, head_width=6))
