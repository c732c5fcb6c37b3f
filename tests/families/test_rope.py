"""Rotary positions of config.json against transformers' own reading of it: each method, both forms, exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trivium.errors import UserError
from trivium.families.gemma3 import GEMMA3
from trivium.families.gpt_neox import GPT_NEOX
from trivium.families.llama import LLAMA
from trivium.models.config import ModelConfig
from trivium.models.positions import rope_frequencies
from trivium.models.rope_scaling import RopeScaling

SIZES = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALED: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    YARN,
    {**YARN, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False},
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 2.0},
    LLAMA3,
    {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
]
FORMS = ("rope_parameters", "rope_scaling", "rope_scaling by type")


def in_form(rope: dict[str, Any], form: str, theta: float = 5e5) -> dict[str, Any]:
    """What transformers 5, 4, or 4 in its early days would have written."""
    if form == "rope_parameters":
        return {"rope_parameters": {**rope, "rope_theta": theta}}
    if form == "rope_scaling by type":
        rope = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    return {"rope_theta": theta, "rope_scaling": dict(rope)}


def frequencies(config: ModelConfig, length: int) -> tuple[torch.Tensor, float]:
    return rope_frequencies(config.rope_width, config.rope_theta, config.rope_scaling, length, "cpu")


def same_as_transformers(config: ModelConfig, theirs: Any, length: int, layer_type: str | None = None) -> bool:
    rope = theirs.rope_parameters[layer_type] if layer_type else theirs.rope_parameters
    layer = {"layer_type": layer_type} if layer_type else {}
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, "cpu", seq_len=length, **layer)
    found, found_factor = frequencies(config, length)
    close = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-6, atol=0)
    return close and found_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [200, 900])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rope", SCALED, ids=lambda rope: "-".join(map(str, rope.values())))
def test_frequencies_are_those_of_transformers(rope: dict[str, Any], form: str, length: int) -> None:
    values = SIZES | in_form(rope, form)
    config = LLAMA.read_config(json.loads(json.dumps(values)), "test")
    assert config.rope_theta == 5e5
    assert same_as_transformers(config, LlamaConfig(**values), length)
    written = json.loads(json.dumps(LLAMA.write_config(config)))
    assert LLAMA.read_config(written, "test") == config
    assert same_as_transformers(config, LlamaConfig(**written), length)
    assert LLAMA.obstacles(config) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rope", SCALED[:3], ids=lambda rope: str(rope["rope_type"]))
def test_a_part_of_each_head(rope: dict[str, Any], form: str) -> None:
    scaled = in_form(rope, form)
    scaled[form.split()[0]]["partial_rotary_factor"] = 0.5
    scaled |= {"rotary_emb_base": scaled.pop("rope_theta")} if "rope_theta" in scaled else {}
    config = GPT_NEOX.read_config(SIZES | scaled, "test")
    assert (config.rope_share, config.rope_width, config.rope_theta) == (0.5, 16, 5e5)
    assert same_as_transformers(config, GPTNeoXConfig(**SIZES, **scaled), 900)
    written = GPT_NEOX.write_config(config)
    assert GPT_NEOX.read_config(written, "test") == config
    assert same_as_transformers(config, GPTNeoXConfig(**written), 900)


def test_older_keys_of_gpt_neox() -> None:
    config = GPT_NEOX.read_config({"rotary_emb_base": 2e4, "rotary_pct": 0.5}, "test")
    theirs = GPTNeoXConfig(rotary_emb_base=2e4, rotary_pct=0.5).rope_parameters
    assert (config.rope_theta, config.rope_share) == (theirs["rope_theta"], theirs["partial_rotary_factor"])
    usual = GPT_NEOX.read_config({}, "test")
    assert usual.rope_share == GPTNeoXConfig().rope_parameters["partial_rotary_factor"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rope_theta": 3e5, "rope_local_base_freq": 2e4},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5}}},
        {"rope_parameters": {"full_attention": dict(LLAMA3), "sliding_attention": {"rope_theta": 9e3}}},
        {"rope_parameters": {"full_attention": {**YARN, "truncate": False}}},
    ],
    ids=str,
)
def test_layers_with_a_base_of_their_own(values: dict[str, Any]) -> None:
    sizes = {**SIZES, "head_dim": 32, "num_hidden_layers": 8}
    config = GEMMA3.read_config(json.loads(json.dumps(sizes | values)), "test")
    theirs = Gemma3TextConfig(**sizes, **json.loads(json.dumps(values)))
    for again in (theirs, Gemma3TextConfig(**GEMMA3.write_config(config))):
        full, local = (again.rope_parameters[name] for name in ("full_attention", "sliding_attention"))
        assert (config.rope_theta, config.local_rope_theta) == (full["rope_theta"], local["rope_theta"])
        if full["rope_type"] == "default":
            assert config.rope_scaling is None
        else:
            assert same_as_transformers(config, again, 200, "full_attention")
    assert GEMMA3.read_config(theirs.to_dict(), "test") == config


def test_rope_scaling_goes_before_rope_parameters() -> None:
    values = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7e5}}
    config, theirs = LLAMA.read_config(values, "test"), LlamaConfig(**json.loads(json.dumps(values)))
    assert (config.rope_theta, config.rope_scaling) == (1e4, RopeScaling(method="linear", factor=2.0))
    assert theirs.rope_parameters["rope_theta"] == 1e4 and theirs.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, 'rope_scaling of type "longrope"'),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, '"short_factor" is not supported'),
        ({"rope_scaling": {"type": "su", "factor": 8.0}}, 'of type "su"'),
        ({"rope_scaling": {"type": ["linear"], "factor": 8.0}}, r'of type \["linear"\]'),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}}, '"mrope_section" is not supported'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, '"full_attention" is not supported'),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object \(is \[1\]\)"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "factor"),
        ({"rope_scaling": {**YARN, "mscale": "1", "mscale_all_dim": 1.0}}, "mscale"),
        ({"rope_scaling": {**YARN, "mscale": 10**400, "mscale_all_dim": 1.0}}, "mscale"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 8.0}}, "high_frequency_factor"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        LLAMA.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 400 and "\n" not in message


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_parameters": {"rope_theta": 1e4}}, "must have the keys full_attention and sliding_attention"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "cannot be scaled"),
        ({"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}}, "partial_rotary_factor must be 1.0"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention must be an object"),
        ({"rope_local_base_freq": "x"}, "local_rope_theta"),
    ],
    ids=str,
)
def test_by_layer_refused(rope: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        GEMMA3.read_config(rope, "DIR/config.json")


def test_ntk_is_said_through_the_base() -> None:
    """Refused with the base that computes the same; so is a dynamic base that does not begin at max_positions."""
    ntk = RopeScaling(method="ntk", factor=4.0)
    config = ModelConfig(vocab_size=10, width=64, layers=1, heads=2, norm_eps=1e-6, rope_scaling=ntk)
    (obstacle,) = LLAMA.obstacles(config)
    assert "rope_scaling.method must not be ntk: rope_theta=" in obstacle
    theta = float(obstacle.partition("rope_theta=")[2].split()[0])
    plain = config.changed(rope_scaling=None, rope_theta=theta)
    assert torch.equal(frequencies(plain, 9)[0], frequencies(config, 9)[0])
    dynamic = RopeScaling(method="dynamic", factor=4.0, original_max_positions=17)
    assert "must be max_positions=2048" in LLAMA.obstacles(config.changed(rope_scaling=dynamic))[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"rope_theta": 4e5},
        {"rope_scaling": None},
        {"rope_scaling": RopeScaling(method="yarn", factor=4.0, original_max_positions=64, beta_slow=4.0)},
        {"rope_scaling": RopeScaling(method="yarn", factor=4.0, original_max_positions=64, truncate=False)},
        {"rope_scaling": RopeScaling(method="yarn", factor=4.0, original_max_positions=64, attention_factor=1.1)},
    ],
    ids=str,
)
def test_broken_control_a_wrong_reading_is_seen(broken: dict[str, Any]) -> None:
    values = SIZES | in_form(YARN, "rope_parameters")
    config, theirs = LLAMA.read_config(values, "test"), LlamaConfig(**json.loads(json.dumps(values)))
    assert same_as_transformers(config, theirs, 200)
    assert not same_as_transformers(config.changed(**broken), theirs, 200)
