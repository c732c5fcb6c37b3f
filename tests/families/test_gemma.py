"""Our decoder against the Gemma 2 and Gemma 3 (text) classes of transformers: every option, every head, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Gemma2Config, Gemma3TextConfig

from families.decoders import check_generation
from families.parity import check_family, check_result, fails, opened, rebuilt, shaken
from trivium.errors import UserError
from trivium.families.family import Family
from trivium.families.gemma2 import GEMMA2
from trivium.families.gemma3 import GEMMA3

FAMILIES = {"Gemma2": GEMMA2, "Gemma3": GEMMA3}
CONFIGS = {"Gemma2": Gemma2Config, "Gemma3": Gemma3TextConfig}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5}
SCALED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma 2": ("Gemma2", {}),
    "gemma 2, tight caps, another scale": ("Gemma2", {**CAPS, "query_pre_attn_scalar": 24}),
    "gemma 2, no caps": ("Gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma 2, untied, biased, wide heads": (
        "Gemma2",
        {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 12, "hidden_size": 40},
    ),
    "gemma 2, all layers full": ("Gemma2", {"layer_types": ["full_attention"] * 3, "hidden_activation": "gelu"}),
    "gemma 3": ("Gemma3", {"num_hidden_layers": 7, "query_pre_attn_scalar": 12}),
    "gemma 3, scaled, every other layer": ("Gemma3", {"rope_parameters": SCALED, "sliding_window_pattern": 2}),
    "gemma 3, untied, biased, capped": (
        "Gemma3",
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma 3, all layers full": ("Gemma3", {"layer_types": ["full_attention"] * 3, "num_key_value_heads": 1}),
}
HEADS = {
    "classification": ("ForSequenceClassification", {"num_labels": 3}),
    "scalar": ("ForSequenceClassification", {"num_labels": 1}),
    "token_classification": ("ForTokenClassification", {"num_labels": 5}),
    "none": ("Model", {}),
}
HEADS_OF = [(name, head) for name, family in FAMILIES.items() for head in HEADS if head in family.heads]


def reference(name: str, kind: str = "ForCausalLM", **options: Any) -> Any:
    torch.manual_seed(0)
    given = json.loads(json.dumps({**SIZES, "pad_token_id": 0, **options}))
    stem = "Gemma3Text" if name == "Gemma3" and kind != "ForCausalLM" else name
    return getattr(transformers, stem + kind)(CONFIGS[name](**given))


@pytest.mark.parametrize(("name", "options"), OPTIONS.values(), ids=OPTIONS)
def test_equals_transformers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(name, **options)
    model, config = check_family(theirs, tmp_path)
    check_generation(theirs, model)
    assert FAMILIES[name].read_config(theirs.config.to_dict(), "test") == config
    layers = [config.is_windowed(layer) for layer in range(config.layers)]
    assert layers == [kind == "sliding_attention" for kind in theirs.config.layer_types]


@pytest.mark.parametrize(("name", "head"), HEADS_OF)
def test_heads(name: str, head: str, tmp_path: Path) -> None:
    kind, labels = HEADS[head]
    _, config = check_family(reference(name, kind, **labels), tmp_path)
    assert config.head == head


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Gemma2", {"attention_softcap": 0.0}),
        ("Gemma2", {"logit_softcap": 2.6}),
        ("Gemma2", {"embedding_scale": 1.0}),
        ("Gemma2", {"norm": "rmsnorm"}),
        ("Gemma2", {"activation": "gelu"}),
        ("Gemma2", {"full_attention_layers": (0,)}),
        ("Gemma3", {"local_rope_theta": 1e4}),
        ("Gemma3", {"rope_scaling": None}),
        ("Gemma3", {"attention_scale": 0.0}),
        ("Gemma3", {"sliding_window": 6}),
    ],
    ids=str,
)
def test_broken_control_a_wrong_config_is_seen(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    own = CAPS if name == "Gemma2" else {"rope_parameters": SCALED, "sliding_window_pattern": 3}
    theirs = shaken(reference(name, query_pre_attn_scalar=24, **own))
    model, _ = opened(theirs, tmp_path)
    check_result(theirs, model)
    assert fails(lambda: check_result(theirs, rebuilt(model, **changes)))


def test_broken_control_swapped_norms_are_seen(tmp_path: Path) -> None:
    """`post_attention_layernorm` is not what it is in a Llama."""
    theirs = shaken(reference("Gemma2"))
    model, _ = opened(theirs, tmp_path)
    block = model.stack.blocks[1]
    block.attention_output_norm, block.mlp_norm = block.mlp_norm, block.attention_output_norm
    assert fails(lambda: check_result(theirs, model))


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_left_out(name: str) -> None:
    family = FAMILIES[name]
    assert family.read_config({}, "test") == family.read_config(CONFIGS[name]().to_dict(), "test")


def test_published_config_of_transformers_4() -> None:
    """Keys as in the files of Gemma 3, 4b."""
    values = {
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1_000_000.0,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "cache_implementation": "hybrid",
    }
    config = GEMMA3.read_config(values, "test")
    assert config == GEMMA3.read_config(Gemma3TextConfig(**json.loads(json.dumps(values))).to_dict(), "test")
    assert config.full_attention_layers == (5, 11, 17, 23, 29)
    assert config.rope_scaling is not None and config.rope_scaling.factor == 8.0
    assert GEMMA3.obstacles(config) == []


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null"),
        (GEMMA2, {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
        (GEMMA2, {"final_logit_softcapping": "30"}, 'final_logit_softcapping is "30"'),
        (GEMMA2, {"final_logit_softcapping": float("nan")}, "final_logit_softcapping is NaN"),
        (GEMMA2, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        (GEMMA2, {"query_pre_attn_scalar": 10**400}, "query_pre_attn_scalar is 1000"),
        (GEMMA2, {"attention_bias": "no"}, 'attention_bias is "no"'),
        (GEMMA2, {"hidden_activation": "silu2"}, 'hidden_activation is "silu2"'),
        (GEMMA2, {"sliding_window": None}, "sliding_window is null, but layer_types has sliding_attention"),
        (GEMMA2, {"hidden_size": 2305}, "heads=8 must divide width=2305"),
        (GEMMA2, {"hidden_size": 10**400}, "width"),
        (GEMMA3, {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        (GEMMA3, {"sliding_window_pattern": "6"}, 'sliding_window_pattern is "6"'),
        (GEMMA3, {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        (GEMMA3, {"architectures": ["Gemma3ForConditionalGeneration"]}, "architectures is"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_we_would_compute_otherwise_is_refused(family: Family, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        family.read_config(changes, "DIR/config.json")
    message = str(caught.value)
    assert "DIR/config.json" in message and len(message) < 500 and "\n" not in message


def test_what_a_gemma_cannot_be() -> None:
    config = GEMMA2.read_config(SIZES, "test")
    assert GEMMA2.obstacles(config) == []
    assert [line.partition(" (is")[0] for line in GEMMA3.obstacles(config)] == [
        "qk_norm must be head",
        "local_rope_theta must be 10000.0",
        "attention_softcap must be 0.0",
    ]
    assert GEMMA2.obstacles(config.changed(attention_scale=0.3)) == [f"attention_scale must be {11**-0.5} (is 0.3)"]
    with pytest.raises(UserError, match=r"query_pre_attn_scalar is 2\.5: give a whole number"):
        GEMMA2.read_config({**SIZES, "query_pre_attn_scalar": 2.5}, "test")
    assert GEMMA2.with_head(config, "scalar").logit_softcap == 0.0
    assert GEMMA2.obstacles(GEMMA2.with_head(config, "scalar")) == []
