"""Our decoder against the Llama classes of transformers: every option, every head, both ways; and its config.json."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from families.decoders import check_generation
from families.parity import (
    check_family,
    check_padding,
    check_result,
    fails,
    opened,
    random_ids,
    rebuilt,
    relative,
    shaken,
)
from trivium.checkpoints.directory import load_weights, save_weights
from trivium.errors import UserError
from trivium.families import FAMILIES, family_for
from trivium.families.llama import LLAMA
from trivium.models.build import Model, build_model
from trivium.models.config import ModelConfig

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e5,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama 2": {},
    "grouped heads, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True, "num_hidden_layers": 3},
    "one key head, wide": {"num_key_value_heads": 1, "head_dim": 10, "hidden_size": 48, "rms_norm_eps": 1e-5},
    "biased attention, gelu": {"attention_bias": True, "hidden_act": "gelu", "vocab_size": 97},
    "biased mlp, relu": {"mlp_bias": True, "hidden_act": "relu", "tie_word_embeddings": True},
    "biased, tanh gelu": {"mlp_bias": True, "attention_bias": True, "hidden_act": "gelu_new"},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "llama 3.2": {"rope_parameters": LLAMA3, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "yarn": {"rope_parameters": YARN},
    "yarn, its own way": {"rope_parameters": {**YARN, "truncate": False, "beta_slow": 2.0, "attention_factor": 0.9}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
}
HEADS = {
    "classification": (LlamaForSequenceClassification, {"num_labels": 3}),
    "scalar": (LlamaForSequenceClassification, {"num_labels": 1}),
    "regression": (LlamaForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
    "token_classification": (LlamaForTokenClassification, {"num_labels": 5}),
    "span": (LlamaForQuestionAnswering, {}),
    "none": (LlamaModel, {}),
}


def reference(seed: int = 0, kind: Any = LlamaForCausalLM, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(LlamaConfig(**json.loads(json.dumps({**SIZES, "pad_token_id": 0, **options}))))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(**options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert LLAMA.read_config(theirs.config.to_dict(), "test") == config


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(kind=kind, **labels), tmp_path)
    assert config.head == ("classification" if head == "regression" else head)


@pytest.mark.parametrize("tied", [True, False])
def test_another_head_on_the_trunk_of_a_language_model(tied: bool, tmp_path: Path) -> None:
    """Under the head for spans the trunk has another name in the files: it is found, and written for transformers."""
    theirs = shaken(reference(tie_word_embeddings=tied))
    language, _ = opened(theirs, tmp_path / "lm")
    model, config = load_weights(tmp_path / "lm", head="span")
    ids = random_ids(config, 2, 9)
    assert torch.equal(model.hidden(ids)[0], language.hidden(ids)[0])
    save_weights(tmp_path / "span", model, config)
    again, info = LlamaForQuestionAnswering.from_pretrained(tmp_path / "span", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert relative(model(ids)[..., 0], again.eval()(ids).start_logits) <= 1e-5


@pytest.mark.parametrize("length", [16, 17, 40])
def test_a_dynamic_base_grows_with_the_text(length: int, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    theirs = shaken(reference(max_position_embeddings=16, rope_parameters=rope))
    model, config = opened(theirs, tmp_path)
    ids = random_ids(config, 2, length)
    assert relative(model(ids), theirs(ids).logits) <= 1e-5
    if length <= 16:
        check_padding(model)  # 64 positions of padding are no text


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 9_000.0},
        {"norm_eps": 1e-2},
        {"activation": "gelu_tanh"},
        {"norm": "layernorm_without_bias"},
    ],
    ids=str,
)
def test_broken_control_a_wrong_setting_is_seen(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_swapped_weights_are_seen(tmp_path: Path) -> None:
    theirs = shaken(reference())
    model, _ = opened(theirs, tmp_path)
    check_generation(theirs, model)
    mlp = model.stack.blocks[0].mlp
    mlp.gate, mlp.up = mlp.up, mlp.gate
    assert fails(lambda: check_result(theirs, model))
    assert fails(lambda: check_generation(theirs, model))


def random_llama(seed: int) -> ModelConfig:
    """Grouped, multi-query or plain heads, tied or not, biased or not, odd sizes."""
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 4, 6])
    return ModelConfig(
        vocab_size=pick.randint(5, 97),
        width=heads * 2 * pick.randint(1, 7),
        layers=pick.randint(1, 3),
        heads=heads,
        kv_heads=pick.choice([k for k in range(1, heads + 1) if heads % k == 0]),
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


def pair(config: ModelConfig) -> tuple[Any, Model]:
    """A model of transformers of this shape, and ours of the same weights."""
    theirs = shaken(LlamaForCausalLM(LlamaConfig(**LLAMA.write_config(config))))
    weights, model = theirs.state_dict(), build_model(config).eval()
    model.load_state_dict({weight.ours[0]: weights[weight.published] for weight in LLAMA.weights(config)})
    return theirs, model


def differences(theirs: Any, model: Model) -> tuple[float, float]:
    """Largest difference of logits, and of gradients of the loss, each tensor relative to its scale."""
    ids = random_ids(model.config, 2, 33)
    results = theirs(input_ids=ids, use_cache=False).logits, model(ids)
    gradients = []
    for result, owner in zip(results, (theirs, model), strict=True):
        loss = F.cross_entropy(result[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        parameters = dict(owner.named_parameters())
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    errors = [0.0]
    for weight in LLAMA.weights(model.config):
        wanted, found = gradients[0][weight.published], gradients[1][weight.ours[0]]
        errors.append(float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-3 * largest))
    return relative(results[1], results[0]), max(errors)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_equals_transformers_in_fp32(config: ModelConfig) -> None:
    logits, gradients = differences(*pair(config))
    assert logits <= 1e-5 and gradients <= 1e-4
    assert LLAMA.read_config(LLAMA.write_config(config), "test") == config


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_equals_transformers_in_fp64(config: ModelConfig) -> None:
    """Their RMSNorm computes in fp32 whatever it is given: torch's takes its place."""
    theirs, model = pair(config)
    for parent in list(theirs.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(config.width, eps=config.norm_eps)
                norm.weight = child.weight
                setattr(parent, name, norm)
    logits, gradients = differences(theirs.double(), model.double())
    assert logits <= 1e-12 and gradients <= 1e-10


def test_bf16_autocast_is_no_worse_than_theirs(tmp_path: Path) -> None:
    theirs = shaken(reference(hidden_size=64, num_hidden_layers=3, vocab_size=200))
    ours, _ = opened(theirs, tmp_path)
    ids = torch.randint(0, 200, (4, 100), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        exact = ours(ids)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(found.float() - exact).norm() for found in (ours(ids), theirs(input_ids=ids).logits)]
    assert errors[0] < 1.5 * errors[1]


# ------------------------------------------------------------------------------------------------------ config, names


def test_older_files_are_read() -> None:
    """What transformers 4 wrote, and keys left out: their meaning is that of `LlamaConfig`."""
    old = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e5, "rope_scaling": None, "head_dim": None}
    config = LLAMA.read_config({**old, "tie_word_embeddings": None, "attention_dropout": None}, "test")
    expected = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert (config.rope_theta, config.head_width, config.kv_heads) == (5e5, 16, 4)
    assert LLAMA.read_config({**expected.to_dict(), "rope_parameters": {"rope_theta": 5e5}}, "test") == config
    assert LLAMA.read_config({}, "test") == LLAMA.read_config(LlamaConfig().to_dict(), "test")


def test_early_files_hold_the_rotary_frequencies() -> None:
    assert LLAMA.is_redundant("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not LLAMA.is_redundant("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "quick_gelu"}, 'hidden_act is "quick_gelu"'),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"architectures": ["LlamaForMultipleChoice"]}, r'architectures is \["LlamaForMultipleChoice"\]'),
        ({"num_key_value_heads": 3}, "kv_heads=3 does not divide heads=32"),
        ({"hidden_size": -1}, "width"),
        ({"hidden_size": 36, "num_attention_heads": 8, "head_dim": 4}, "heads=8 must divide width=36"),
        ({"head_dim": 7}, "rotary positions turn pairs"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"rms_norm_eps": 0}, "norm_eps"),
        ({"rms_norm_eps": "x" * 10_000}, "norm_eps"),
        ({"tie_word_embeddings": {}}, "tied_embeddings"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        LLAMA.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_family_for_names_what_must_change() -> None:
    config = ModelConfig(vocab_size=50, width=24, layers=2, heads=4)
    assert family_for(config) is FAMILIES["llama"]
    with pytest.raises(UserError) as caught:
        family_for(config.changed(norm="layernorm", positions="learned", bias="qkv"))
    assert "no published family has models of this shape" in str(caught.value)
    obstacles = LLAMA.obstacles(config.changed(norm="layernorm", positions="learned", bias="qkv"))
    assert [line.partition(" (is")[0] for line in obstacles] == [
        "norm must be rmsnorm",
        "positions must be rotary",
        "bias must be none",
    ]
    assert LLAMA.obstacles(config.changed(heads=5, head_width=6)) == ["llama: heads=5 must divide width=24"]
